"""Pictures as a viewer shows them, against arrays that numpy makes by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from capture.samples.pictures import check_images
from capture.samples.queries import Query
from llava_amber_activations import ActivationsError
from llava_amber_activations.parsing.picture_decoding import (
    PICTURE_ERRORS,
    UnusablePictureError,
    decode_picture,
)

NAMES = ("a.png", "b.tiff", "c.png")
SIZE = (5, 7)  # height, width


def random_pixels(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(7).integers(0, high, size=shape, dtype=dtype)


def saved(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decoded(content):
    """The decoded picture as an array, uint8 [height, width, 3]."""
    image = decode_picture(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def over_white(colour, alpha):
    """What is seen of colours [..., 3] with alpha [...] in front of white."""
    share = alpha[..., None].astype(float) / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def grey(values):
    return np.repeat(values[..., None], 3, axis=-1)


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"progressive": True}, {"exif": 1}])
def test_plain_photographs_are_what_pillow_decodes(image_dir, options):
    """AMBER's kind, JPEG in RGB or grey: the arrays of the first release, bit for bit."""
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = 1
        options = {"exif": exif}
    for path in sorted(image_dir.iterdir()):
        for mode in ("RGB", "L"):
            with Image.open(path) as image:
                content = saved(image.convert(mode), "JPEG", **options)
            with Image.open(io.BytesIO(content)) as image:
                assert np.array_equal(decoded(content), np.asarray(image.convert("RGB")))


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no such orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_rotation(orientation, kind):
    """Turned upright once, whichever format says so and whether Pillow turns it itself."""
    pixels = random_pixels(*SIZE, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    stored = pixels
    if kind == "JPEG":
        plain = saved(Image.fromarray(pixels), kind)
        with Image.open(io.BytesIO(plain)) as image:
            stored = np.asarray(image)
    content = saved(Image.fromarray(pixels), kind, exif=exif, **options)
    assert np.array_equal(decoded(content), UPRIGHT[orientation](stored))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_says_nothing():
    """As in a viewer, the picture is shown as it is stored."""
    pixels = random_pixels(*SIZE, 3)
    content = saved(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert np.array_equal(decoded(content), pixels)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bit_grey(kind, mode):
    """v / 257 rounded: 65535 is white, 32767 and 32768 are the middle."""
    values = random_pixels(*SIZE, high=65536, dtype=np.uint16)
    values[0] = [0, 128, 129, 255, 32767, 32768, 65535]
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, SIZE[::-1], values.astype(order).tobytes())
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(decoded(saved(image, kind)), grey(expected))


def png(depth, colour_type, rows, **chunks):
    """A PNG written by hand: `rows` are the scanlines' bytes."""
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, colour_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks}
    parts |= {"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)), "IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        typed = name.encode() + data
        content += struct.pack(">I", len(data)) + typed + struct.pack(">I", zlib.crc32(typed))
    return content


def test_sixteen_bit_colour():
    """Pillow keeps the upper 8 bits."""
    values = random_pixels(*SIZE, 3, high=65536, dtype=np.uint16)
    content = png(16, 2, [row.astype(">u2").tobytes() for row in values])
    assert np.array_equal(decoded(content), (values >> 8).astype(np.uint8))


def test_transparent_grey_of_sixteen_bits():
    values = random_pixels(*SIZE, high=65536, dtype=np.uint16)
    values[1, 2] = values[3, 3] = 1000
    content = png(16, 0, [row.astype(">u2").tobytes() for row in values], tRNS=b"\x03\xe8")
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    expected[values == 1000] = 255
    assert np.array_equal(decoded(content), grey(expected))


def test_alpha_lies_on_white():
    pixels = random_pixels(*SIZE, 4)
    pixels[0, :3, 3] = [0, 255, 128]
    content = saved(Image.fromarray(pixels), "PNG")
    assert np.array_equal(decoded(content), over_white(pixels[..., :3], pixels[..., 3]))


def test_grey_with_alpha_lies_on_white():
    pixels = random_pixels(*SIZE, 2)
    content = saved(Image.fromarray(pixels, "LA"), "PNG")
    assert np.array_equal(decoded(content), over_white(grey(pixels[..., 0]), pixels[..., 1]))


def palette_image(indices, colours):
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    return image


def test_palette():
    indices, colours = random_pixels(*SIZE, high=16), random_pixels(16, 3)
    content = saved(palette_image(indices, colours), "PNG")
    assert np.array_equal(decoded(content), colours[indices])


def test_palette_with_transparency():
    """Of each colour its own alpha, as PNG has it."""
    indices, colours, alpha = random_pixels(*SIZE, high=16), random_pixels(16, 3), random_pixels(16)
    content = saved(palette_image(indices, colours), "PNG", transparency=alpha.tobytes())
    assert np.array_equal(decoded(content), over_white(colours[indices], alpha[indices]))


def test_a_transparent_colour():
    """One colour that stands for nothing, in colour and in grey."""
    pixels = random_pixels(*SIZE, 3)
    key = tuple(int(value) for value in pixels[2, 3])
    expected = pixels.copy()
    expected[(pixels == key).all(axis=-1)] = 255
    content = saved(Image.fromarray(pixels), "PNG", transparency=key)
    assert np.array_equal(decoded(content), expected)
    levels = random_pixels(*SIZE, high=4)
    content = saved(Image.fromarray(levels), "PNG", transparency=2)
    assert np.array_equal(decoded(content), grey(np.where(levels == 2, 255, levels)))


def test_one_bit():
    bits = random_pixels(*SIZE, high=2).astype(bool)
    content = saved(Image.fromarray(bits), "PNG")
    assert np.array_equal(decoded(content), grey(np.where(bits, 255, 0).astype(np.uint8)))


def test_cmyk():
    """Inks take light away: (255 - C)(255 - K) / 255."""
    inks = random_pixels(*SIZE, 4)
    content = saved(Image.fromarray(inks, "CMYK"), "TIFF")
    light = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert np.abs(decoded(content) - light).max() <= 0.5
    flat = np.full((16, 16, 4), (200, 30, 90, 40), np.uint8)
    found = decoded(saved(Image.fromarray(flat, "CMYK"), "JPEG", quality=100))
    expected = [(255 - ink) * (255 - 40) / 255 for ink in (200, 30, 90)]
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames(kind):
    indices, colours = random_pixels(*SIZE, high=16), random_pixels(16, 3)
    first = palette_image(indices, colours)
    other = palette_image((indices + 1) % 16, colours)
    options = {"save_all": True}
    if kind == "WEBP":
        first, other, options["lossless"] = first.convert("RGB"), other.convert("RGB"), True
    content = saved(first, kind, append_images=[other, first], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decoded(content), colours[indices])


def test_an_animation_with_transparency():
    indices, colours = random_pixels(*SIZE, high=16), random_pixels(16, 3)
    content = saved(palette_image(indices, colours), "GIF", transparency=5)
    expected = colours[indices]
    expected[indices == 5] = 255
    assert np.array_equal(decoded(content), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (1, 4096)])
def test_shapes(shape):
    pixels = random_pixels(*shape, 3)
    assert np.array_equal(decoded(saved(Image.fromarray(pixels), "PNG")), pixels)


@pytest.mark.parametrize("shape", [(1, 4097), (4097, 1), (2, 60000)])
def test_extreme_shapes_are_refused(shape):
    content = saved(Image.fromarray(np.zeros(shape, np.uint8)), "PNG")
    with pytest.raises(UnusablePictureError, match=f"is {shape[1]} × {shape[0]} pixels.*crop it"):
        decode_picture(content)


@pytest.mark.parametrize(
    ("values", "said"),
    [(np.ones(SIZE, np.float32), "floating-point"), (np.ones(SIZE, np.int32), "32-bit integers")],
)
def test_pixels_without_a_reading_are_refused(values, said):
    with pytest.raises(UnusablePictureError, match=f"holds {said}"):
        decode_picture(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of what Pillow passes over in a TIFF
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_files(kind):
    """Bytes changed at random: a picture, or one of the errors that are made a sentence."""
    generator = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}
    content = saved(Image.fromarray(random_pixels(24, 24, 3)), kind, **options)
    failed = 0
    for _ in range(60):
        changed = bytearray(content)
        for place in generator.integers(0, min(len(changed), 400), size=4):
            changed[place] = generator.integers(0, 256)
        try:
            decoded(bytes(changed[: int(generator.integers(8, len(changed) + 1))]))
        except PICTURE_ERRORS:
            failed += 1
    assert failed > 0


def test_the_header_says_it_before_anything_is_captured(tmp_path):
    """The first picture that cannot be used is named, without decoding any."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("F", (9, 9)).save(tmp_path / "b.tiff")
    Image.new("L", (5000, 1)).save(tmp_path / "c.png")
    good, floating, long = (Query(n, 0, name, "") for n, name in enumerate(NAMES))
    check_images([good], tmp_path)
    with pytest.raises(ActivationsError, match=r"b\.tiff of sample 1 holds floating-point"):
        check_images([good, floating, long], tmp_path)
    with pytest.raises(ActivationsError, match=r"c\.png of sample 2 is 5000 × 1 pixels.*skip"):
        check_images([good, long], tmp_path)
