"""Facial expression recognition with a network that reads 48x48 grey faces natively."""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "emotion.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "emotion.data": ("FaceDataset", "load_dataset"),
    "emotion.labels": ("FER2013_LABELS", "FERPLUS_LABELS"),
    "emotion.model": ("EmotionCNN", "create_enhanced_grayscale_model"),
    "emotion.predict": ("EmotionPredictor", "Prediction", "load_and_predict_48x48_grayscale"),
    "emotion.trainer": ("train_epoch", "validate_epoch"),
    "emotion.transforms": (
        "AdaptiveHistogramEqualization",
        "GrayscaleNoise",
        "Normalize",
        "RandomAffine",
        "RandomBrightness",
        "RandomContrast",
        "RandomHorizontalFlip",
        "RandomPerspectiveSmall",
        "RandomRotation",
        "RandomSharpness",
        "ToTensor",
        "get_enhanced_transforms_grayscale_48",
    ),
}

__all__ = ["__version__", *(name for names in _EXPORTS.values() for name in names)]


# On first use, not on import: PyTorch alone takes seconds, which `python -m emotion --help` need not wait for.
def __getattr__(name: str) -> object:
    for module, names in _EXPORTS.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'emotion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
