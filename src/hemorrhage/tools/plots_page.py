"""The page of ``dvc plots diff`` without a network: DVC's own loads vega from a CDN.

    python -m hemorrhage.tools.plots_page

writes .dvc/plots.html, a template with vega, vega-lite and vega-embed as Snakemake carries them for its reports,
packed; and names it in .dvc/config.local. `make setup` calls it. Without it DVC uses its own template.
"""

from __future__ import annotations

import base64
import gzip
import subprocess
from importlib.resources import files
from pathlib import Path

FILE = Path(".dvc/plots.html")
SCRIPTS = ("vega", "vega-lite", "vega-embed")
START, END = '<script type="text/plain" id="vega">', "</script>"

TEMPLATE = """<!DOCTYPE html>
<!-- Written by python -m hemorrhage.tools.plots_page. Vega, Vega-Lite and Vega-Embed are (c) University of Washington
Interactive Data Lab, under the BSD 3-Clause License, whose text stands before each in what is packed here. -->
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
    """Return the scripts of vega in the order in which they need each other, each after its licence."""
    data = files("snakemake.assets") / "data"
    parts = [(data / name / "LICENSE", data / name / f"{name}.js") for name in SCRIPTS]
    return "\n".join(f"/*\n{notice.read_text()}*/\n{script.read_text()}" for notice, script in parts)


def unpack(page: str) -> str:
    """Return the scripts that a page holds."""
    packed = page.partition(START)[2].partition(END)[0]
    return gzip.decompress(base64.b64decode(packed)).decode()


def page() -> str:
    """Return the template."""
    packed = base64.b64encode(gzip.compress(source().encode(), mtime=0)).decode()
    return TEMPLATE.replace("START_HERE", f"{START}{packed}{END}")


def main() -> None:
    """Write the template, and name it to DVC."""
    FILE.write_text(page(), encoding="utf-8")
    subprocess.run(["dvc", "config", "--local", "plots.html_template", FILE.name], check=True)


if __name__ == "__main__":
    main()
