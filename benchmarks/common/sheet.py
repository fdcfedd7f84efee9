"""A contact sheet: rows of pictures over a checkerboard, so that transparency shows, with a caption under each."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 256
GAP = 12
CAPTION = 16
SQUARE = 16
COLUMNS = 4


def checkerboard(width: int, height: int) -> Image.Image:
    board = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(board)
    for top in range(0, height, SQUARE):
        for left in range(0, width, SQUARE):
            if (top + left) // SQUARE % 2:
                draw.rectangle((left, top, left + SQUARE - 1, top + SQUARE - 1), fill=(205, 205, 205))
    return board


def save_sheet(path: Path, columns: Sequence[Sequence[tuple[Path, str]]]) -> None:
    """Write a contact sheet. A column is (picture, caption) from top to bottom; columns wrap after `COLUMNS`."""
    depth = max(map(len, columns))
    bands = -(-len(columns) // COLUMNS)
    step_x, step_y = CELL + GAP, CELL + CAPTION + GAP
    size = (GAP + COLUMNS * step_x, GAP + bands * (depth * step_y + GAP))
    sheet = Image.new("RGB", size, (245, 245, 245))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, column in enumerate(columns):
        left = GAP + index % COLUMNS * step_x
        for row, (file, caption) in enumerate(column):
            top = GAP + index // COLUMNS * (depth * step_y + GAP) + row * step_y
            with Image.open(file) as picture:
                board = checkerboard(*picture.size)
                board.paste(picture, mask=picture.getchannel("A"))
            board.thumbnail((CELL, CELL))
            sheet.paste(board, (left + (CELL - board.width) // 2, top + (CELL - board.height) // 2))
            draw.text((left, top + CELL + 2), caption, fill=(60, 60, 60), font=font)
    sheet.save(path)
