"""How good is it: baselines on the same data, probes without training, and judges that no model was trained on."""

from gpt_modules.evaluation.adaptation.callback import AdaptationCurves
from gpt_modules.evaluation.baselines import BagOfWords, KneserNey, NaiveBayes
from gpt_modules.evaluation.callbacks import BagOfWordsBaseline, NaiveBayesBaseline, NgramBaseline, ZeroShotProbes
from gpt_modules.evaluation.probes import Probe
from gpt_modules.evaluation.sentiment import vader
from gpt_modules.evaluation.tasks.callback import FewShot
from gpt_modules.evaluation.tasks.definitions import EvaluationTask, find_tasks
from gpt_modules.evaluation.tasks.measure import Settings, measure, prepare, read_data
from gpt_modules.evaluation.tasks.perplexity import CorpusScore, corpus_nats
from gpt_modules.evaluation.tasks.scoring import Score, continuation_logprobs

__all__ = [
    "AdaptationCurves",
    "BagOfWords",
    "BagOfWordsBaseline",
    "CorpusScore",
    "EvaluationTask",
    "FewShot",
    "KneserNey",
    "NaiveBayes",
    "NaiveBayesBaseline",
    "NgramBaseline",
    "Probe",
    "Score",
    "Settings",
    "ZeroShotProbes",
    "continuation_logprobs",
    "corpus_nats",
    "find_tasks",
    "measure",
    "prepare",
    "read_data",
    "vader",
]
