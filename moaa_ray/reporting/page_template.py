"""The page of pairs as a template, behind the macros of page.py; every value is escaped where it is put in."""

TEMPLATE = """\
{% macro side(one, title) %}
<div class="side {{ one.role }}"><h4>{{ title }}: candidate {{ one.index }}</h4>
<p class="soft">score {{ one.score }}, {{ one.completion | length | num }} characters\
{% if one.num_tokens %}, {{ one.num_tokens | num }} tokens{% endif %}\
{% if one.finish_reason == "length" %}, cut off at its longest{% endif %}</p>
{{ body(one.completion) }}</div>
{% endmacro %}
{% macro table_of_scores(card) %}
<div class="scroll" tabindex="0" role="region" aria-label="Scores of the candidates of {{ card.id }}"><table>
<thead><tr><th class="name" scope="col">candidate</th><th scope="col">place</th><th scope="col">score</th>
{% if card.matrix %}<th scope="col">won</th><th scope="col">lost</th><th scope="col">tied</th>
<th scope="col">missing</th>{% endif %}<th scope="col">characters</th><th scope="col">tokens</th>
<th class="name" scope="col">ended by</th></tr></thead><tbody>
{% for one in card.ranked %}
<tr><th class="name" scope="row">{{ one.index }}{% if one.role %} {{ one.role }}{% endif %}\
{% if one.same_as is not none %} (same text as {{ one.same_as }}){% endif %}</th>
<td>{{ one.place or "-" }}</td><td>{{ one.score }}</td>
{% if card.matrix %}<td>{{ one.tally.won }}</td><td>{{ one.tally.lost }}</td><td>{{ one.tally.tied }}</td>
<td>{{ one.tally.missing }}</td>{% endif %}<td>{{ one.completion | length | num }}</td>
<td>{{ one.num_tokens | num if one.num_tokens else "-" }}</td>
<td class="name">{{ one.error or one.finish_reason }}</td></tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{% macro matrix(card) %}
<div class="scroll" tabindex="0" role="region" aria-label="Verdicts on the candidates of {{ card.id }}">
<table class="matrix">
<thead><tr><td></td>{% for one in card.candidates %}<th scope="col">{{ one.index }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in card.matrix %}<tr><th scope="row">{{ loop.index0 }}</th>
{% for cell in row %}<td class="{{ cell.kind }}" title="{{ cell.told }}">\
{% if cell.kind == "self" %}{% elif cell.kind == "never" %}-{% else %}{{ cell.kind }}<small>{{ cell.orders }}</small>\
{% endif %}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% endmacro %}
{% macro meeting(each) %}
{% set i, j = each.pair %}
<details><summary>{{ i }} and {{ j }}{% if each.round > 1 %}, round {{ each.round }}{% endif %}: {{ outcome(each) }}\
{% if each.criteria %}; {{ each.criteria | join(", ") }}{% endif %}\
{% if each.is_fallback %} (fallback: no criteria were chosen in form){% endif %}</summary>
{% for q in each.questions %}
<p><strong>{{ q.first }} shown first</strong>, {{ q.judge }}: \
{% if q.winner is none %}no verdict ({{ q.error or "none" }})\
{% else %}{{ q.letter }}, which is {{ q.winner }}{% endif %}</p>
{% if q.text %}{{ body(q.text, 400) }}{% endif %}
{% for judge, said in q.assessments %}
<details><summary>Assessment by {{ judge }}</summary>
{{ body(said, 4000) }}</details>
{% endfor %}{% endfor %}</details>
{% endmacro %}
{{ document("Pairs of " ~ run_name ~ ", judged by " ~ judge) }}
<body>
<a class="skip" href="#prompts">Skip to the prompts</a>
<header><h1>Pairs of {{ run_name }}, judged by {{ judge }}</h1>
<p class="soft">{{ uri }}{% if kind %} &middot; a judge of kind {{ kind }}{% endif %}\
{% if not is_in_use %} &middot; not the judge in use{% endif %}</p></header>
<main><section aria-labelledby="did"><h2 id="did">What the judge did</h2>
<p>{{ headline }}</p>
{{ tiles(facts) }}{{ drawn(pictures) }}
<div class="tables">{% for title, rows in tables %}<div><h3>{{ title }}</h3>{{ grid(title, rows) }}</div>{% endfor %}
</div></section>
<section id="prompts" aria-labelledby="shown"><h2 id="shown">{{ cards | length | num }} of {{ num_all | num }} prompts\
</h2><p>{{ shown }}</p>
<p><button id="all" type="button" aria-pressed="false">Unfold everything</button></p>
<nav aria-label="Prompts on this page"><details><summary>Index of the prompts below</summary>
<ol class="jump">{% for card in cards %}
<li><a href="#p{{ loop.index }}">{{ card.id }}</a> <span class="soft">{{ card.outcome }}</span></li>{% endfor %}
</ol></details></nav>
{% for card in cards %}
<article class="card" id="p{{ loop.index }}" aria-labelledby="h{{ loop.index }}">
<div class="head"><h3 id="h{{ loop.index }}">{{ card.id }}</h3>
<span class="tag {{ "kept" if card.is_pair else "lost" }}">{{ card.outcome }}</span>
<span class="soft">{{ card.source }}{% for flag in card.flags %} &middot; {{ flag }}{% endfor %}</span></div>
<p><strong>{{ card.why }}</strong>{% if card.detail %} {{ card.detail }}{% endif %}</p>
{% for message in card.messages %}
<h4>{{ "Prompt" if card.messages | length == 1 else message.role }}</h4>{{ body(message.content) }}{% endfor %}
{% if card.chosen and card.rejected %}<div class="two">{{ side(card.chosen, "Chosen") }}\
{{ side(card.rejected, "Rejected") }}</div>{% endif %}
{% if card.candidates %}<h4>Scores</h4>{{ table_of_scores(card) }}{% endif %}
{% if card.matrix %}<h4>Verdicts in both orders</h4>{{ matrix(card) }}
<p class="soft">The row's candidate against the column's. Below the outcome: whom the judge named with the row's \
candidate shown first | with it shown second.</p>
<details><summary>{{ card.meetings | length }} pairs with their criteria, verdicts and assessments</summary>
{% for each in card.meetings %}{{ meeting(each) }}{% endfor %}</details>{% endif %}
{% if card.ratings %}<details><summary>{{ card.ratings | length }} ratings</summary>{% for one in card.ratings %}
<p>candidate {{ one.candidate }}{% if one.aspect %}, {{ one.aspect }}{% endif %}: \
{{ score(one.value) }}{% if one.error %} ({{ one.error }}){% endif %}</p>
{% if one.aspect and one.text %}{{ body(one.text, 400) }}{% endif %}{% endfor %}</details>{% endif %}
{% set others = card.candidates | rejectattr("role") | selectattr("completion") | list %}
{% if others %}<details><summary>{{ "The other candidates" if card.is_pair else "The candidates" }}</summary>
{% for one in others %}{{ side(one, "Candidate") }}{% endfor %}</details>{% endif %}
</article>{% endfor %}</section></main><script>{{ script }}</script></body></html>
"""
