"""Training losses: choose forms, call a verb, average."""

from . import fgan
from .average import average
from .consistency import UDA, Consistency
from .control import AdaptiveKL, DoubleHalveKL, EarlyStop, TrustRegion
from .distillation import Distillation
from .dkd import DKD
from .fgan import FGAN, NWJ, DonskerVaradhan
from .gaussian import DiagonalGaussian, FullGaussian, gaussian_kl, gaussian_kl_per_dimension
from .gkd import GKD, SkewKL
from .label_smoothing import LabelSmoothing
from .mutual import MutualLearning
from .policy import PolicyKL
from .rdrop import RDrop
from .schedules import cyclical, linear, training_signal
from .vae import VAELoss, reconstruction_nll
from .variational import ForwardKL, ReverseKL

__all__ = [
    "DKD",
    "FGAN",
    "GKD",
    "NWJ",
    "UDA",
    "AdaptiveKL",
    "Consistency",
    "DiagonalGaussian",
    "Distillation",
    "DonskerVaradhan",
    "DoubleHalveKL",
    "EarlyStop",
    "ForwardKL",
    "FullGaussian",
    "LabelSmoothing",
    "MutualLearning",
    "PolicyKL",
    "RDrop",
    "ReverseKL",
    "SkewKL",
    "TrustRegion",
    "VAELoss",
    "average",
    "cyclical",
    "fgan",
    "gaussian_kl",
    "gaussian_kl_per_dimension",
    "linear",
    "reconstruction_nll",
    "training_signal",
]
