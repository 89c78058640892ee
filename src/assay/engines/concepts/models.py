"""All models, made known to the library's Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from assay.engines.concepts.classify import ConceptForSequenceClassification
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.encoder import ConceptModel
from assay.engines.concepts.masked import ConceptForMaskedLM, unmask

AutoConfig.register(ConceptConfig.model_type, ConceptConfig, exist_ok=True)
AutoModel.register(ConceptConfig, ConceptModel, exist_ok=True)
AutoModelForMaskedLM.register(ConceptConfig, ConceptForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    ConceptConfig, ConceptForSequenceClassification, exist_ok=True
)

__all__ = [
    "ConceptConfig",
    "ConceptForMaskedLM",
    "ConceptForSequenceClassification",
    "ConceptModel",
    "unmask",
]
