"""Makes the images of this folder and what Pillow makes of them. See README.md."""
import io
import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
W, H = 45, 35  # neither divides by 8 or 16


def picture():
    """A smooth picture with some edges: gradients, a disc and a bar."""
    y, x = np.mgrid[0:H, 0:W].astype(np.float64)
    r = 40 + 180 * x / (W - 1)
    g = 30 + 190 * y / (H - 1)
    b = 128 + 100 * np.sin(x / 5) * np.cos(y / 6)
    rgb = np.stack([r, g, b], -1)
    rgb[(x - 12) ** 2 + (y - 10) ** 2 < 36] = (220, 40, 60)
    rgb[24:28, 20:40] = (20, 60, 200)
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, color, rows, extra=b"", interlace=0):
    """A PNG of packed rows, for variants that Pillow does not write. `rows(pass)` is handed (xs, ys) of each pass."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for x0, y0, dx, dy in passes if interlace else [(0, 0, 1, 1)]:
        xs, ys = range(x0, width, dx), range(y0, height, dy)
        if xs and ys:
            data += b"".join(b"\0" + rows(list(xs), y) for y in ys)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b""))


def packed(values, depth):
    bits = "".join(format(v, f"0{depth}b") for v in values)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def expect(name, image):
    """What the picture is once read: RGB bytes as a PNG."""
    image.convert("RGB").save(HERE / f"{name}.expected.png", optimize=True)


def keep(name, data, expected=None):
    (HERE / name).write_bytes(data)
    if expected is None:
        expected = Image.open(io.BytesIO(data))
    expect(name, expected)


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def run(*command, data):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def main():
    rgb = picture()
    gray = rgb.convert("L")
    pixels, grays = np.asarray(rgb), np.asarray(gray)

    # JPEG
    for name, sampling in [("420", 2), ("422", 1), ("444", 0)]:
        keep(f"rgb-{name}.jpg", encoded(rgb, format="JPEG", quality=85, subsampling=sampling))
    keep("gray.jpg", encoded(gray, format="JPEG", quality=85))
    keep("progressive.jpg", encoded(rgb, format="JPEG", quality=85, progressive=True))
    keep("cmyk.jpg", encoded(rgb.convert("CMYK"), format="JPEG", quality=85))
    baseline = encoded(rgb, format="JPEG", quality=85)
    keep("arithmetic.jpg", run("jpegtran", "-arithmetic", data=baseline), Image.open(io.BytesIO(baseline)))
    keep("restarts.jpg", run("jpegtran", "-restart", "1B", data=baseline))
    # YCCK: the same samples, declared so by the transform byte of the Adobe marker.
    cmyk = encoded(rgb.convert("CMYK"), format="JPEG", quality=95, subsampling=0)
    at = cmyk.index(b"\xff\xee\x00\x0eAdobe")
    keep("ycck.jpg", cmyk[: at + 15] + b"\x02" + cmyk[at + 16 :])
    # Precisions that only libjpeg-turbo 3 writes: 12 bits, and lossless with 8 and 16.
    ppm = b"P6 %d %d 4095\n" % (W, H) + (pixels.astype(np.uint32) * 4095 // 255).astype(">u2").tobytes()
    cjpeg = os.environ.get("CJPEG", "cjpeg")
    twelve = run(cjpeg, "-precision", "12", "-quality", "95", "-sample", "1x1", data=ppm)
    keep("twelve-bit.jpg", twelve, rgb)
    ppm = b"P6 %d %d 255\n" % (W, H) + pixels.tobytes()
    keep("lossless.jpg", run(cjpeg, "-lossless", "1", data=ppm), rgb)
    ppm = b"P6 %d %d 65535\n" % (W, H) + (pixels.astype(np.uint32) * 257).astype(">u2").tobytes()
    keep("lossless-16-bit.jpg", run(cjpeg, "-precision", "16", "-lossless", "1", data=ppm), rgb)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(rgb.resize((24, 16)), format="JPEG", quality=85, subsampling=0, exif=exif)
        keep(f"exif-{orientation}.jpg", data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))

    # PNG
    keep("rgb8.png", encoded(rgb, format="PNG"))
    keep("gray8.png", encoded(gray, format="PNG"))
    rgba = np.dstack([pixels, (np.arange(W) * 5 % 256).astype(np.uint8)[None].repeat(H, 0)])
    keep("rgba8.png", encoded(Image.fromarray(rgba), format="PNG"))
    keep("la8.png", encoded(Image.fromarray(np.dstack([grays, rgba[..., 3]])), format="PNG"))
    for depth in (1, 2, 4):
        top = (1 << depth) - 1
        levels = grays.astype(np.uint32) * top // 255
        data = png(W, H, depth, 0, lambda xs, y: packed([levels[y, x] for x in xs], depth))
        keep(f"gray{depth}.png", data, Image.fromarray((levels * 255 // top).astype(np.uint8)))
    quantized = rgb.quantize(16)
    indices = np.asarray(quantized)
    palette = bytes(quantized.getpalette()[: 16 * 3])
    keep("palette4.png", png(W, H, 4, 3, lambda xs, y: packed([int(indices[y, x]) for x in xs], 4), chunk(b"PLTE", palette)))
    keep("palette8-trns.png", png(W, H, 8, 3, lambda xs, y: bytes(int(indices[y, x]) for x in xs), chunk(b"PLTE", palette) + chunk(b"tRNS", bytes([0, 128, 255]))))
    keep("rgb8-trns.png", png(W, H, 8, 2, lambda xs, y: b"".join(bytes(pixels[y, x]) for x in xs), chunk(b"tRNS", struct.pack(">HHH", 220, 40, 60))))
    keep("interlaced.png", png(W, H, 8, 2, lambda xs, y: b"".join(bytes(pixels[y, x]) for x in xs), interlace=1))
    wide = pixels.astype(np.uint32) * 257
    keep("rgb16.png", png(W, H, 16, 2, lambda xs, y: b"".join(struct.pack(">HHH", *map(int, wide[y, x])) for x in xs)), rgb)
    wide_gray = grays.astype(np.uint32) * 257
    keep("gray16.png", png(W, H, 16, 0, lambda xs, y: b"".join(struct.pack(">H", int(wide_gray[y, x])) for x in xs)), gray)
    keep("rgba16.png", png(W, H, 16, 6, lambda xs, y: b"".join(struct.pack(">HHHH", *map(int, wide[y, x]), 9 * x) for x in xs)), rgb)

    # The others
    second = rgb.transpose(Image.Transpose.ROTATE_180)
    keep("animated.gif", encoded(rgb.quantize(32), format="GIF", save_all=True, append_images=[second.quantize(32)]))
    keep("lossy.webp", encoded(rgb, format="WEBP", quality=85))
    keep("lossless.webp", encoded(rgb, format="WEBP", lossless=True))
    keep("animated.webp", encoded(rgb, format="WEBP", lossless=True, save_all=True, append_images=[second]))
    keep("rgb.bmp", encoded(rgb, format="BMP"))
    keep("palette.bmp", encoded(quantized, format="BMP"))
    keep("lzw.tiff", encoded(rgb, format="TIFF", compression="tiff_lzw"))
    keep("gray.tiff", encoded(gray, format="TIFF"))

    # Geometry, on a larger picture
    large = rgb.resize((200, 150), Image.Resampling.BICUBIC)
    (HERE / "large.jpg").write_bytes(encoded(large, format="JPEG", quality=90))
    large = Image.open(HERE / "large.jpg")
    filters = [("nearest", Image.Resampling.NEAREST), ("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC), ("lanczos3", Image.Resampling.LANCZOS)]
    for name, how in filters:
        expect(f"large.resize-32x48-{name}", large.resize((48, 32), how))
    expect("large.resize-90x230-bilinear", large.resize((230, 90), Image.Resampling.BILINEAR))
    shorter = large.resize((64 * 200 // 150, 64), Image.Resampling.BILINEAR)
    expect("large.shorter-64-center-56", shorter.crop((round((85 - 56) / 2), 4, round((85 - 56) / 2) + 56, 60)))
    expect("large.crop-70x90-resize-40x40", large.crop((55, 40, 145, 110)).resize((40, 40), Image.Resampling.BILINEAR))


main()
