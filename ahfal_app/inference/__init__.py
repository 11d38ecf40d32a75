"""A saved model in use: prediction, evaluation, export, a service."""

from ahfal_app.inference.saved_model import SavedModel, load_model

__all__ = ["SavedModel", "load_model"]
