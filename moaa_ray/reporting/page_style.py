"""The style sheet of every page, and what a browser may run and load there; nothing in it comes from a run."""

from base64 import b64encode
from hashlib import sha256

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f7f8fa; --ink: #1a1c20; --soft: #565c66; --rule: #d3d7de;
  --win: #1d5fb8; --winback: #e3eefb; --loss: #9a4600; --lossback: #fcecdc; --tie: #5b5f68; --tieback: #e6e8ec;
  --mark: #1d5fb8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --card: #1d2026; --ink: #e7e9ee; --soft: #a7aeba; --rule: #3a3f49;
    --win: #8dbcff; --winback: #1a2c47; --loss: #ffb474; --lossback: #43280f; --tie: #b9bec8; --tieback: #2b2f37;
    --mark: #8dbcff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: .75rem 0 .25rem; }
p { margin: .4rem 0; max-width: 50rem; }
.soft, .label { color: var(--soft); } .soft { font-size: .9rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
a { color: var(--mark); } a, span, strong { unicode-bidi: isolate; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--soft); border-radius: .4rem;
  padding: .4rem .8rem; cursor: pointer; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 46%), 1fr)); gap: .6rem;
  margin: .6rem 0; }
.facts > div, .card { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .7rem; }
.facts dt { color: var(--soft); font-size: .9rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts dd small { font-size: .85rem; color: var(--soft); display: block; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; color: var(--soft); margin-bottom: .3rem; }
svg { width: 100%; max-width: 26rem; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.bar, .part0, .dot { fill: var(--win); } .part1 { fill: var(--lossback); stroke: var(--loss); }
.part2 { fill: var(--tieback); stroke: var(--tie); } .dot { fill-opacity: .55; }
svg text.on0 { fill: var(--paper); } svg text.on1, svg text.on2 { fill: var(--ink); }
.axis { stroke: var(--soft); } .half { stroke: var(--ink); stroke-dasharray: 3 3; }
.card { margin: 1rem 0; content-visibility: auto; contain-intrinsic-size: auto 60rem; }
.head { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; }
.tag { border: 1px solid currentcolor; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem; }
.tag.kept { color: var(--win); } .tag.lost { color: var(--loss); }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
@media (max-width: 48rem) { .two { grid-template-columns: 1fr; } }
.side { border-left: .3rem solid var(--rule); padding-left: .6rem; min-width: 0; }
.side.chosen { border-color: var(--win); } .side.rejected { border-color: var(--loss); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; overflow: hidden; unicode-bidi: plaintext; contain: paint;
  margin: .2rem 0; padding: .4rem .5rem; background: var(--paper); border: 1px solid var(--rule);
  border-radius: .3rem; font-size: .95rem; }
summary { cursor: pointer; padding: .25rem 0; overflow-wrap: anywhere; }
details.long[open] > .start { display: none; }
details details { margin-left: .8rem; }
.scroll { overflow-x: auto; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2rem; } .tables > div { min-width: 0; max-width: 100%; }
.tables h3 { margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .3rem 0; }
th, td { border: 1px solid var(--rule); padding: .25rem .5rem; text-align: right; }
th, td { white-space: nowrap; } th.name, td.name { white-space: normal; } tbody th.name { min-width: 10rem; }
th { font-weight: 600; background: var(--card); } td.name, th.name { text-align: left; }
.matrix td { text-align: center; min-width: 3.6rem; } .matrix small { display: block; color: inherit; }
.win { background: var(--winback); color: var(--win); } .loss { background: var(--lossback); color: var(--loss); }
.tie { background: var(--tieback); color: var(--tie); }
.missing { background: repeating-linear-gradient(45deg, var(--paper) 0 4px, var(--tieback) 4px 8px); }
.jump { columns: 17rem; font-size: .9rem; padding: 0; list-style-position: inside; }
.jump li { overflow-wrap: anywhere; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.parts { list-style: none; padding: 0; margin: .5rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
section > h3 { margin-top: 1.2rem; }
.warn { color: var(--loss); }
pre.text { max-height: 30rem; overflow: auto; }
svg.stretched { max-width: none; height: 1.5rem; }
.lanes { max-width: 62rem; } .lanes h3 { margin: .8rem 0 .2rem; } .lane { margin: .3rem 0; }
.ticks { display: flex; justify-content: space-between; border-top: 1px solid var(--soft); font-size: .85rem;
  color: var(--soft); font-variant-numeric: tabular-nums; }
.idle { fill: var(--winback); } .starting { fill: var(--loss); } .cut { stroke: var(--ink); stroke-dasharray: 3 3;
  vector-effect: non-scaling-stroke; }
.whisker { stroke: var(--win); stroke-width: 2; } .value { fill: var(--win); }
.line0, .line1 { fill: none; stroke: var(--win); stroke-width: 1.5; }
.line1 { stroke: var(--loss); stroke-dasharray: 5 3; }
.point0 { fill: var(--win); } .point1 { fill: var(--loss); }
.lengths .wide { min-width: 12rem; padding: 0; vertical-align: bottom; } .lengths .stretched { height: 2rem; }
input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--soft); border-radius: .4rem;
  padding: .4rem .6rem; width: min(24rem, 100%); }
form { display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; } form[hidden] { display: none; }
@media print { .card { break-inside: avoid-page; } button { display: none; } }
"""


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def policy(script: str) -> str:
    """What a browser may run and load on a page: the style and this script, by their hashes, and nothing else."""
    return f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(script)}; base-uri 'none'; " + (
        "form-action 'none'"
    )
