"""The text chunks of a picture's PNG file, for this program, for others and for readers of its provenance.

| key | holds |
|---|---|
| `parameters` | the text that Stable Diffusion web UIs, ComfyUI and galleries read |
| `qwen-image-engine` | all parameters as JSON |
| `XML:com.adobe.xmp` | XMP, whose digital source type says that a trained model made the picture |

No other key is written: ComfyUI parses a text under the key `prompt` as JSON.
"""

import json

from PIL.PngImagePlugin import PngInfo

from qwen_image_engine.runtime.images.parameters import CHUNK, PictureParameters
from qwen_image_engine.runtime.sampling.solver import SOLVERS

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def text_chunks(parameters: PictureParameters) -> PngInfo:
    """Return the text chunks of a picture. A text that Latin-1 cannot hold is in iTXt, which is UTF-8."""
    chunks = PngInfo()
    chunks.add_text("parameters", webui_text(parameters))
    chunks.add_text(CHUNK, parameters.to_json())
    chunks.add_itxt("XML:com.adobe.xmp", xmp_packet(parameters))
    return chunks


def xmp_packet(parameters: PictureParameters) -> str:
    """Return the XMP of a picture, which any format of files can hold."""
    return _XMP.format(source_type=digital_source_type(parameters))


def webui_text(parameters: PictureParameters) -> str:
    """Return the parameters in the form of AUTOMATIC1111's web UI (`create_infotext` of its `processing.py`).

    The prompt, a line "Negative prompt: …" if there is one, and a line of settings. Noise that the caller gave has no
    seed.
    """
    guidance = parameters.guidance
    settings = {
        "Steps": parameters.steps,
        "Sampler": SOLVERS[parameters.solver].label if parameters.solver in SOLVERS else parameters.solver,
        "CFG scale": int(guidance) if guidance == int(guidance) else guidance,
        "Seed": parameters.seed,
        "Size": f"{parameters.width}x{parameters.height}",
        "Model": parameters.checkpoint,
        "Batch size": parameters.num_images if parameters.num_images > 1 else None,
        "Batch pos": parameters.image if parameters.num_images > 1 else None,
        "Version": f"qwen-image-engine {parameters.version}",
    }
    negative = f"Negative prompt: {parameters.negative_prompt}" if parameters.negative_prompt else None
    line = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None)
    text = "\n".join(part for part in (parameters.prompt, negative, line) if part is not None)
    return text.replace("\0", "")  # no text of a PNG may hold it


def digital_source_type(parameters: PictureParameters) -> str:
    """Return the term of IPTC's vocabulary: "Created using Generative AI", or "Edited" after reference images."""
    term = "compositeWithTrainedAlgorithmicMedia" if parameters.references else "trainedAlgorithmicMedia"
    return _SOURCE_TYPES + term


def _quoted(value: str) -> str:
    """Return a value as the web UI writes it: in quotation marks if it has a character that separates values."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
