"""Description of a model as a message; comes from its configuration, not its weights."""

from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import sampling_message
from smalti.text.vocabulary import Words, load_words
from smalti.v1 import model_pb2


def model_reference(name: str, revision: str) -> model_pb2.ModelReference:
    """Returns the name and revision of a model as a message."""
    return model_pb2.ModelReference(name=name, revision=revision)


def model_message(spec: ModelSpec) -> model_pb2.Model:
    """Returns the description of a model; the gateway adds `default`, `limits` and `vocabulary`.

    Raises:
        ModelError: the header of the VQGAN's weights cannot be read.
    """
    folder = spec.folder
    return model_pb2.Model(
        reference=model_reference(folder.name, folder.revision),
        description=folder.manifest.description,
        licence=folder.manifest.licence,
        source=folder.manifest.source,
        image_width=spec.resolution,
        image_height=spec.resolution,
        rows=spec.side,
        columns=spec.side,
        codebook_size=spec.codebook_size,
        text_length=spec.transformer.max_text_length,
        encoding_width=spec.transformer.d_model,
        encodes_images=spec.encodes_images,
        sampling=sampling_message(folder.sampling),
        default_vary=folder.defaults.vary,
        default_diversity=folder.defaults.diversity,
        default_n=folder.defaults.n,
        default_candidates=folder.defaults.candidates,
        refiner=model_pb2.Refiner(revision=spec.refiner_revision or "", upscale=spec.refiner.upscale)
        if spec.refiner
        else None,
        enlarges=True,
    )


def model_card(spec: ModelSpec) -> model_pb2.Model:
    """Returns the description of a model with its vocabulary, as encoders tell it to the gateways.

    Raises:
        ModelError: a file of the model is invalid.
    """
    message = model_message(spec)
    message.vocabulary.CopyFrom(_vocabulary(load_words(spec.folder.words_file)))
    return message


def _vocabulary(words: Words | None) -> model_pb2.Vocabulary:
    if words is None:
        return model_pb2.Vocabulary(closed=False)
    groups = {
        "things": words.things,
        "colours": words.colours,
        "backgrounds": words.backgrounds,
        "patterns": words.patterns,
        "scenes": words.scenes,
        "styles": words.styles,
        "sizes": words.sizes,
        "counts": words.counts,
        "places": words.places,
        "poses": words.poses,
        "relations": words.relations,
        "grammar": words.grammar,
    }
    return model_pb2.Vocabulary(
        closed=True,
        groups=[
            model_pb2.WordGroup(name=name, words=sorted(known)) for name, known in groups.items() if known
        ],
    )
