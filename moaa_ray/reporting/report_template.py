"""report.html as a template, behind the macros of page.py; every value is escaped where it is put in."""

TEMPLATE = """\
{% macro row_card(card, number) %}
<article class="card" id="r{{ number }}" aria-labelledby="rh{{ number }}">
<div class="head"><h3 id="rh{{ number }}">{{ card.id }}</h3>
<span class="tag {{ "kept" if card.is_kept else "lost" }}">{{ card.outcome }}</span>
<span class="soft">{{ card.source }}</span></div>
{% if card.detail %}<p>{{ card.detail }}</p>{% endif %}
{% for message in card.messages %}
<h4>{{ "Prompt" if card.messages | length == 1 else message.role }}</h4>{{ body(message.content) }}{% endfor %}
<div class="two">{% for text in card.texts %}<div class="side {{ text.role }}"><h4>{{ text.title }}</h4>
<p class="soft">{{ text.about }}</p>{{ body(text.content) }}</div>{% endfor %}</div></article>
{% endmacro %}
{{ document("Report of " ~ run_name) }}
<body>
<a class="skip" href="#rows">Skip to the sample rows</a>
<header><h1>Report of {{ run_name }}</h1>
<p class="soft">{{ uri }} &middot; made {{ made_at }} UTC with moaa_ray {{ version }}</p>
<nav aria-label="Parts of this page"><ul class="parts">{% for anchor, title in parts %}
<li><a href="#{{ anchor }}">{{ title }}</a></li>{% endfor %}</ul></nav></header>
<main>
<section id="ran" aria-labelledby="ran-h"><h2 id="ran-h">What ran</h2>
<p>{{ headline }}</p>
{{ tiles(facts) }}
{{ grid("Stages", stages, true) }}
{% if models | length > 1 %}{{ grid("Models of the recipe", models, true) }}{% endif %}
{{ grid("Starts, with what each ran on", starts, true) }}
{% if changes %}<p class="warn">The recipe was changed while rows of it existed (--allow-changes): \
{{ changes | join("; ") }}</p>{% endif %}
{% if recipe %}<details><summary>The whole recipe</summary><pre tabindex="0" class="text">{{ recipe }}</pre></details>\
{% endif %}</section>
<section id="time" aria-labelledby="time-h"><h2 id="time-h">When every pool was at work</h2>
{% if lanes %}<p>One axis for all. Filled: busy with at least one request, the higher the larger the part of its \
engines' time. Pale: up, with nothing to do. A low orange band: starting, or waiting for its place.\
{% if num_cuts %} A dashed line: {{ "a time" if num_cuts == 1 else num_cuts ~ " times" }} without any work, cut out.\
{% endif %}</p>
<div class="lanes">{% for title, those in lanes %}<h3>{{ title }}</h3>{% for lane in those %}
<div class="lane"><div><strong>{{ lane.name }}</strong> <span class="soft">{{ lane.told }}</span></div>
{{ lane.picture }}</div>{% endfor %}{% endfor %}
<div class="ticks" aria-hidden="true">{% for tick in ticks %}<span>{{ tick }}</span>{% endfor %}</div>
<p class="soft">Time since {{ began }} UTC.</p></div>
{% else %}<p>Nothing has worked yet, or it did so before the run kept its times.</p>{% endif %}</section>
<section id="cost" aria-labelledby="cost-h"><h2 id="cost-h">Tokens, throughput and cost</h2>
{% if costs %}{{ grid("By stage and slot, over all starts", costs, true) }}{% endif %}
{% for title, rows in pools %}{{ grid(title, rows, true) }}{% else %}<p>No pool has run yet.</p>{% endfor %}
</section>
<section id="failures" aria-labelledby="failures-h"><h2 id="failures-h">Failures</h2>
{% if failures | length > 1 %}{{ grid("Prompts that are not in the data, by reason", failures, true) }}
{% else %}<p>No prompt has failed or was dropped, as far as stages have ended.</p>{% endif %}
{% if request_failures | length > 1 %}{{ grid("Requests that failed, by reason", request_failures, true) }}\
{% endif %}</section>
{% if lengths %}<section id="lengths" aria-labelledby="lengths-h"><h2 id="lengths-h">Lengths in characters</h2>
{% for title, rows, axis in lengths %}
<div class="scroll" tabindex="0" role="region" aria-label="Lengths {{ title }}"><table class="lengths">
<caption>{{ title or "All texts" }}; histograms {{ axis }}; cut off: ended at the longest allowed</caption>
<thead><tr>{% for name in length_titles %}<th class="{{ "name" if loop.first or loop.last }}" scope="col">\
{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row.cells %}{% if loop.first %}<th class="name" scope="row">{{ cell }}</th>\
{% else %}<td>{{ cell }}</td>{% endif %}{% endfor %}<td class="wide">{{ row.picture }}</td></tr>{% endfor %}
</tbody></table></div>{% endfor %}</section>{% endif %}
{% if judges or agreement %}<section id="judges" aria-labelledby="judges-h"><h2 id="judges-h">Judges</h2>
{% for title, judge in judges %}<h3>{{ title }}</h3>
<p>{{ judge.headline }} A page with every verdict on some prompts is made by: moaa pairs RUN --judge {{ judge.name }}\
</p>
{{ tiles(judge.facts) }}{{ drawn(judge.pictures) }}<div class="tables">\
{% for name, rows in judge.tables %}{{ grid(name, rows, true) }}{% endfor %}</div>{% endfor %}
{% for title, rows in agreement %}
{{ grid(title, rows, true) }}
<p class="soft">Below the diagonal: of the comparisons of two candidates that both decide, those decided alike, in % \
(a coin: 50). Above it: of the prompts where each has one best candidate, those where it is the same. In brackets 95 % \
intervals over prompts.</p>{% endfor %}</section>{% endif %}
{% if evaluation %}<section id="scores" aria-labelledby="scores-h"><h2 id="scores-h">Evaluation</h2>

{% for name, rows in evaluation.tables %}{{ grid(name, rows, true) }}{% endfor %}{{ drawn(evaluation.pictures) }}
<ul>{% for note in evaluation.notes %}<li>{{ note }}</li>{% endfor %}</ul></section>{% endif %}
{% if training %}<section id="training" aria-labelledby="training-h"><h2 id="training-h">Training</h2>
{% for title, told, shown in training %}<h3>{{ title }}</h3><p>{{ told }}</p>{{ drawn(shown) }}{% endfor %}
</section>{% endif %}
<section id="rows" aria-labelledby="rows-h"><h2 id="rows-h">{{ cards | length | num }} sample rows</h2>
{% if cards %}<p>Drawn by the seed of the run: some of the pairs, of the syntheses, and of the failures.</p>
<form id="search" role="search" hidden><label for="find">Search these rows</label>
<input id="find" type="search" autocomplete="off" spellcheck="false" aria-keyshortcuts="/">
<span class="soft">press / to come here, Escape to see all</span> <span id="found" role="status"></span></form>
<div id="cards">{% for card in cards %}{{ row_card(card, loop.index) }}{% endfor %}</div>
{% else %}<p>No row is published yet; a stage publishes its rows when it ends.</p>{% endif %}</section>
</main><script>{{ script }}</script></body></html>
"""

SCRIPT = """
(function () {
  var box = document.getElementById("find"), found = document.getElementById("found");
  if (!box) return;
  var cards = Array.prototype.slice.call(document.querySelectorAll("#cards article"));
  var texts = cards.map(function (card) { return card.textContent.toLowerCase(); });
  function holds(text, words) { return words.every(function (word) { return text.indexOf(word) >= 0; }); }
  function look() {
    var words = box.value.toLowerCase().split(/\\s+/).filter(Boolean), num = 0;
    cards.forEach(function (card, i) {
      var is_hit = holds(texts[i], words);
      card.hidden = !is_hit;
      num += is_hit;
      card.querySelectorAll("details").forEach(function (one) {
        var text = one.textContent.toLowerCase();
        one.open = is_hit && words.some(function (word) { return text.indexOf(word) >= 0; });
      });
    });
    found.textContent = words.length ? num + " of " + cards.length + " rows" : "";
  }
  document.getElementById("search").hidden = false;
  document.getElementById("search").addEventListener("submit", function (event) { event.preventDefault(); });
  box.addEventListener("input", look);
  document.addEventListener("keydown", function (event) {
    if (event.key === "/" && document.activeElement !== box) { event.preventDefault(); box.focus(); }
    if (event.key === "Escape" && document.activeElement === box) { box.value = ""; look(); }
  });
})();
"""
