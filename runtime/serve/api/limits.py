"""The bounds of what a client may send and how long it may take."""

from dataclasses import dataclass

MAX_PICTURES = 10
"""Largest `n`, which is OpenAI's."""

MAX_PARTIAL_IMAGES = 3

MAX_PROMPT_CHARACTERS = 32_000
"""Longest prompt that is tokenized at all, which is OpenAI's bound; 1,100 tokens fit."""


@dataclass(frozen=True)
class Limits:
    """The bounds of one server.

    Attributes:
        json_bytes: largest body of a generation.
        form_bytes: largest body of an edit, images included.
        upload_pixels: most pixels of an image or a mask.
        picture_pixels: most pixels of a picture. The released model draws up to 2752x1536.
        picture_side: longest side of a picture. WebP holds 16,383.
        header_bytes: largest head of a request.
        header_s: longest time from the first byte of a request, or from the connection, to the end of its head [s].
        body_s: longest time for a body [s].
        body_grace_s: time of a body before its rate counts [s].
        body_rate: least bytes a second that a body brings after that. What was brought before it counts too.
        write_s: longest time in which a client takes nothing of a reply [s].
        bodies: most requests whose bodies are read at the same time.
        client_bodies: most of these of one client's address.
        queue: most requests that wait, besides the one in work.
        links: most pictures that are kept for `response_format: url`.
        link_bytes: most bytes of these pictures together.
        link_s: time after which such a picture is removed [s].
    """

    json_bytes: int = 10**6
    form_bytes: int = 128 * 10**6
    upload_pixels: int = 1 << 26
    picture_pixels: int = 2752 * 1536
    picture_side: int = 8192
    header_bytes: int = 32_000
    header_s: float = 10.0
    body_s: float = 120.0
    body_grace_s: float = 10.0
    body_rate: float = 8000.0
    write_s: float = 60.0
    bodies: int = 32
    client_bodies: int = 16
    queue: int = 16
    links: int = 1000
    link_bytes: int = 10**9
    link_s: float = 3600.0
