"""How good is it: baselines on the same data, and judges that no model was trained on."""

from gpt_modules.evaluation.baselines import BagOfWords, KneserNey
from gpt_modules.evaluation.callbacks import BagOfWordsBaseline, NgramBaseline
from gpt_modules.evaluation.sentiment import vader

__all__ = ["BagOfWords", "BagOfWordsBaseline", "KneserNey", "NgramBaseline", "vader"]
