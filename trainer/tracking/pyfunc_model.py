"""An export as a pyfunc of MLflow, which copies this file into each model and runs it to load the model.

The model brings copies of the packages `models` and `retrieval` along, so that MLflow loads it where MealRec is not
installed. Nothing is unpickled: the export is safetensors, Arrow and JSON.
"""

from __future__ import annotations

from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException

from models.errors import UserError
from retrieval.recommender import Recommender


class Recommendations(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types
    """A column `history` of lists of item ids, oldest first, to the best items of each.

    params: k, exclude_history, as `Recommender.recommend_all` has them. A history without a known id gets popular
    items, without scores; `note` says so, and names ids that are unknown. Raises MlflowException (400 of MLflow's
    server) for a k below 1.
    """

    def load_context(self, context: Any) -> None:
        """Load the export, whose files are checked."""
        self._recommender = Recommender.load(context.artifacts["export"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns items, titles, scores (lists, best first) and note (text), a row for each history."""
        del context
        histories = [[str(item) for item in row] for row in model_input["history"]]
        try:
            answers = self._recommender.recommend_all(histories, **(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        found = [answer.recommendations for answer in answers]
        return pd.DataFrame(
            {
                "items": [[each.item for each in row] for row in found],
                "titles": [[each.title for each in row] for row in found],
                "scores": [[each.score for each in row] for row in found],
                "note": [answer.remarks for answer in answers],
            }
        )


mlflow.models.set_model(Recommendations())
