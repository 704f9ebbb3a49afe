"""The detector as an MLflow model. MLflow runs this file to load it; nothing of the project imports it."""

import mlflow
import pandas as pd


class ImageScorer(mlflow.pyfunc.PythonModel):
    """Image files to P(fake)."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        from detector.predict import Detector

        self._detector = Detector(context.artifacts["model"])

    def predict(self, context, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Score the column `image`, the bytes of image files: `p_fake` (0..1) and `label`, one row an image."""
        scores = self._detector.score_files(model_input["image"])
        return pd.DataFrame({"p_fake": scores, "label": self._detector.labels(scores)})


mlflow.models.set_model(ImageScorer())
