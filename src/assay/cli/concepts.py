"""`assay concepts`: encoders of texts as concept vectors, without a study.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

from cyclopts import App

from assay.cli.concepts_analyze import analyze
from assay.cli.concepts_evaluate import evaluate
from assay.cli.concepts_pretrain import pretrain, settings
from assay.cli.concepts_publish import publish, registry, unpack

app = App(name="concepts", help="Texts as C concept vectors.")
app.command(pretrain)
app.command(analyze)
app.command(evaluate)
app.command(registry)
app.command(unpack)
app.command(publish)
app.command(settings)
