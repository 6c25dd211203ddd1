"""Check that PIL is there and decodes the forms in which pictures come."""

from __future__ import annotations

from launch.checks import CheckResult

NEEDED = {"jpg": "JPEG", "zlib": "PNG"}
RARE = {"webp": "WebP", "libtiff": "compressed TIFF"}
"""PIL's name of a codec -> the form of pictures. Of the benchmarks, all are JPEG or PNG."""


def pictures() -> CheckResult:
    """The codecs with which PIL was built; only tasks of pictures need them."""
    try:
        import PIL
        from PIL import features
    except ImportError as error:
        found = f"PIL does not import: {error}"
        return CheckResult(found, "fault", "pip install --force-reinstall pillow")
    lacking = [form for name, form in (NEEDED | RARE).items() if not features.check(name)]
    found = f"PIL {PIL.__version__}"
    if not lacking:
        return CheckResult(f"{found} decodes {', '.join((NEEDED | RARE).values())}")
    found = f"{found} does not decode {', '.join(lacking)}"
    if set(lacking).isdisjoint(NEEDED.values()):
        return CheckResult(found)
    remedy = "pip install --force-reinstall pillow (its wheels decode all of them)"
    return CheckResult(f"{found}, which tasks of pictures need", "warning", remedy)
