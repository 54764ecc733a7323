"""Models by name: a folder or an installed package of `transformers`, or a function of one's own."""

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fathom.errors import ConfigError, brief, optional

#: The class of `transformers` that has the head for a task; AutoModel where none is named.
HEADS = {
    "classification": "AutoModelForSequenceClassification",
    "generation": "AutoModelForCausalLM",
    "question_answering": "AutoModelForQuestionAnswering",
    "segmentation": "AutoModelForSemanticSegmentation",
    "summarisation": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "image classification": "AutoModelForImageClassification",
    "audio classification": "AutoModelForAudioClassification",
}
#: What makes a model's inputs: its class, and what people call it.
READERS = {
    "text": ("AutoTokenizer", "tokenizer"),
    "image": ("AutoImageProcessor", "image processor"),
    "audio": ("AutoFeatureExtractor", "feature extractor"),
}


def load_model(name: str, task: str | None = None, *, weights: bool = True) -> nn.Module:
    """A model by a folder with config.json, an installed package that holds one, or ``module:function`` that makes one.

    ``task``: with the head for it. Without ``weights`` it is on no device, and only its structure can be looked at.
    Nothing is fetched, and no code of a model's folder is run. Raises ConfigError where there is no such model,
    MissingExtraError without transformers.
    """
    module, _, function = name.partition(":")
    if function and not Path(name).exists():
        return _made_by(module, function)
    return _from_folder(_folder_of(name), task, weights=weights)


def load_tokenizer(name: str) -> Any:
    """The tokenizer beside a model that ``load_model`` finds; raises ConfigError where there is none."""
    return load_reader(name, "text")


def load_reader(name: str, kind: str) -> Any:
    """What makes the inputs of a model that ``load_model`` finds, of texts, images or audio, see ``READERS``.

    Raises ConfigError where there is none beside it.
    """
    folder, (auto, called) = _folder_of(name), READERS[kind]
    logging.disable(logging.WARNING)
    try:
        made = getattr(optional("transformers", "text"), auto)
        reader = made.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{folder}: holds no {called}: {brief(error, 120)}") from error
    finally:
        logging.disable(logging.NOTSET)
    if kind == "text" and reader.pad_token is None:
        reader.pad_token = reader.eos_token
    return reader


def _folder_of(name: str) -> Path:
    """Where config.json is."""
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise ConfigError(f"{name}: no model: there is no config.json in it")
    package = name.replace("-", "_")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module that was made and not found, as __main__
        spec = None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for config in sorted(Path(place).rglob("config.json"), key=lambda path: (len(path.parts), path)):
            if '"model_type"' in config.read_text(errors="replace"):
                return config.parent
    raise ConfigError(
        f"{brief(name)}: neither a folder with config.json, nor a package that holds one, nor module:function"
    )


def _from_folder(folder: Path, task: str | None, *, weights: bool) -> nn.Module:
    # What it says of other libraries that happen to be installed is not about this model.
    logging.disable(logging.WARNING)
    try:
        transformers = optional("transformers", "text")
        transformers.utils.logging.disable_progress_bar()
        auto = getattr(transformers, HEADS.get(task or "", "AutoModel"))
        if weights:
            model: nn.Module = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        else:
            with torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model = auto.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{folder}: transformers cannot open it: {brief(error, 160)}") from error
    finally:
        logging.disable(logging.NOTSET)
    return model.eval()


def _made_by(module: str, function: str) -> nn.Module:
    try:
        make: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{module}:{function}: {error}") from error
    model = make if isinstance(make, nn.Module) else make()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{module}:{function} gives {type(model).__name__}, not a torch.nn.Module")
    return model.eval()
