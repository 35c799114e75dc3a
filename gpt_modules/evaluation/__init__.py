"""How good is it: baselines on the same data, probes without training, and judges that no model was trained on."""

from gpt_modules.evaluation.baselines import BagOfWords, KneserNey, NaiveBayes
from gpt_modules.evaluation.callbacks import BagOfWordsBaseline, NaiveBayesBaseline, NgramBaseline, ZeroShotProbes
from gpt_modules.evaluation.probes import Probe
from gpt_modules.evaluation.scoring import Score, continuation_logprobs
from gpt_modules.evaluation.sentiment import vader

__all__ = [
    "BagOfWords",
    "BagOfWordsBaseline",
    "KneserNey",
    "NaiveBayes",
    "NaiveBayesBaseline",
    "NgramBaseline",
    "Probe",
    "Score",
    "ZeroShotProbes",
    "continuation_logprobs",
    "vader",
]
