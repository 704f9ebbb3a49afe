"""The detector as an MLflow model. MLflow runs this file to load it; nothing of the project imports it."""

import mlflow
import pandas as pd


class ImageScorer(mlflow.pyfunc.PythonModel):
    """Image files to P(fake)."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        from detector.inference.detector import Detector

        self._detector = Detector(context.artifacts["model"])

    def predict(self, context, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Score the column `image`, the bytes of image files: one row an image.

        Returns:
            `p_fake`, calibrated, 0..1; `label`, the class it is called; `verdict`, that class or "unsure".

        Raises:
            MlflowException: an entry is no image; a server answers with status 400.
        """
        from detector.images import BrokenImage, decode
        from detector.inference.detector import crop_faces

        size = self._detector.card.image_size
        wholes = (crop for data in model_input["image"] for crop in crop_faces(decode(data), size))
        try:
            rows = [(face.p_fake, face.label, face.verdict) for face in self._detector.score(wholes)]
        except BrokenImage as error:
            message = f"column image: {error}; give whole image files, in JSON as base64 within dataframe_split"
            raise mlflow.MlflowException.invalid_parameter_value(message) from None
        return pd.DataFrame(rows, columns=["p_fake", "label", "verdict"]).astype({"p_fake": float})


mlflow.models.set_model(ImageScorer())
