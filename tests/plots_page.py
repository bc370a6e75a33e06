"""The page of `dvc plots diff` without a network: DVC's own loads vega from a CDN.

    python -m tests.plots_page

writes .dvc/plots.html, the template that .dvc/config names, with vega, vega-lite and vega-embed as Snakemake carries
them for its reports, packed.
"""

from __future__ import annotations

import base64
import gzip
from importlib.resources import files

from tests.conftest import ROOT

FILE = ROOT / ".dvc" / "plots.html"
SCRIPTS = ("vega", "vega-lite", "vega-embed")
START, END = '<script type="text/plain" id="vega">', "</script>"

TEMPLATE = """<!DOCTYPE html>
<!-- Written by python -m tests.plots_page. Vega, Vega-Lite and Vega-Embed are (c) University of Washington Interactive
Data Lab, under the BSD 3-Clause License, whose text stands before each in what is packed here. -->
<html lang="en">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>Plots of hemorrhage</title>
<style>table { border-spacing: 15px; } body { font-family: sans-serif; }</style>
<script>
// What DVC draws waits until vega is unpacked.
const waiting = [];
window.vegaEmbed = (...figure) => waiting.push(figure);
</script>
</head>
<body>
{plot_divs}
START_HERE
<script>
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (letter) => letter.charCodeAt(0));
  const source = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(source).text();
  document.head.append(script);
  waiting.forEach((figure) => window.vegaEmbed(...figure));
})();
</script>
</body>
</html>
"""


def source() -> str:
    """The scripts of vega in the order in which they need each other, each after its licence."""
    data = files("snakemake.assets") / "data"
    parts = [(data / name / "LICENSE", data / name / f"{name}.js") for name in SCRIPTS]
    return "\n".join(f"/*\n{notice.read_text()}*/\n{script.read_text()}" for notice, script in parts)


def unpack(page: str) -> str:
    """The scripts that a page holds."""
    packed = page.partition(START)[2].partition(END)[0]
    return gzip.decompress(base64.b64decode(packed)).decode()


def main() -> None:
    """Write the template."""
    packed = base64.b64encode(gzip.compress(source().encode(), mtime=0)).decode()
    FILE.write_text(TEMPLATE.replace("START_HERE", f"{START}{packed}{END}"), encoding="utf-8")


if __name__ == "__main__":
    main()
