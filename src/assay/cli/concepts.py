"""`assay concepts`: measure encoders of texts as concept vectors, without a study."""

from cyclopts import App

from assay.cli.concepts_evaluate import evaluate

app = App(name="concepts", help="Texts as concept vectors.")
app.command(evaluate)
