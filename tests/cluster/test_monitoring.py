"""Dashboard and rules ask for what is exported, in PromQL that parses; Prometheus gets in to one port."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from moaa_ray.telemetry import METRICS
from tests.cluster.documents import MONITORING, PODS, documents_in

promql = pytest.importorskip("promql_parser")

OURS = {metric.exported: {"run", "stage", *metric.labels} for metric in METRICS}
RAY = {
    "ray_node_mem_total", "ray_node_mem_used", "ray_node_disk_free", "ray_node_disk_usage", "ray_node_gram_used",
    "ray_node_gpus_utilization", "ray_serve_num_http_requests_total", "ray_serve_http_request_latency_ms_bucket",
}  # fmt: skip
"""Of Ray's own, those that are asked for."""
VARIABLES = {"$__rate_interval": "5m", "$run": "a", "$stage": "b", "$session": "c"}
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GROUPS = documents_in(MONITORING / "rules.yaml")[0]["spec"]["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Name and labels of everything that an expression selects. Raises ValueError where it is no PromQL."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    yield from _selectors(promql.parse(expression))


def _selectors(part: Any) -> Iterator[tuple[str, set[str]]]:
    if isinstance(part, promql.VectorSelector):
        yield part.name, {matcher.name for matcher in part.matchers.matchers}
    elif isinstance(part, promql.MatrixSelector):
        yield from _selectors(part.vector_selector)
    elif isinstance(part, promql.BinaryExpr):
        yield from _selectors(part.lhs)
        yield from _selectors(part.rhs)
    elif isinstance(part, promql.Call):
        for argument in part.args:
            yield from _selectors(argument)
    elif isinstance(part, promql.AggregateExpr | promql.ParenExpr | promql.SubqueryExpr | promql.UnaryExpr):
        yield from _selectors(part.expr)
    else:
        assert isinstance(part, promql.NumberLiteral), part


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_parses_and_asks_for_what_we_or_ray_export(expression: str):
    found = list(selectors(expression))
    assert found
    for name, labels in found:
        assert name in OURS.keys() | RAY, name
        if name in OURS:
            assert labels <= OURS[name] | {"SessionName"}, name


def test_an_expression_that_does_not_parse_is_found():
    with pytest.raises(ValueError, match="parenthesis"):
        list(selectors("sum by (run (ray_moaa_rows_total)"))


def test_everything_that_is_told_is_looked_at_somewhere():
    asked = {name for expression in EXPRESSIONS for name, _ in selectors(expression)}
    assert set(OURS) <= asked
    assert asked >= RAY


def test_ray_s_own_names_are_ray_s():
    reporter = pytest.importorskip("ray.dashboard.modules.reporter.reporter_agent")
    known = {f"ray_{name}" for name in reporter.METRICS_GAUGES}
    assert {name for name in RAY if name.startswith("ray_node_")} <= known


def test_the_table_of_the_readme_is_that_of_the_code():
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(moaa_\w+)` \| (counter|gauge) \| (.*?) \| (.*?) \|$", text, re.M)
    assert rows == [
        (m.name, "counter" if m.is_counter else "gauge", ", ".join(f"`{label}`" for label in m.labels), m.text)
        for m in METRICS
    ]


def test_panels_have_one_id_each_and_do_not_lie_upon_each_other():
    panels = DASHBOARD["panels"]
    assert sorted(panel["id"] for panel in panels) == list(range(1, len(panels) + 1))
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert max(columns) < 24
        assert not cells & taken
        taken |= cells
    assert all(panel["datasource"]["uid"] == "${source}" for panel in PANELS)


def test_every_alert_says_what_it_means_and_what_to_do_and_waits_or_looks_back():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["description"]) > 40
        assert re.search(r"\[\d+[mh]", rule["expr"]) or "for" in rule
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= labels_of(promql.parse(rule["expr"])), rule["alert"]


def labels_of(part: Any) -> set[str]:
    """Labels that the result of an expression has for sure."""
    if isinstance(part, promql.VectorSelector):
        return OURS.get(part.name, {"ip", "SessionName"})
    if isinstance(part, promql.AggregateExpr):
        return set(part.modifier.labels)
    if isinstance(part, promql.Call):
        return labels_of(next(each for each in part.args if not isinstance(each, promql.NumberLiteral)))
    if isinstance(part, promql.MatrixSelector):
        return labels_of(part.vector_selector)
    if isinstance(part, promql.BinaryExpr):
        is_number = isinstance(part.lhs, promql.NumberLiteral)
        found = labels_of(part.rhs) if is_number else labels_of(part.lhs)
        return found & labels_of(part.rhs) if str(part.op) == "or" else found
    return labels_of(part.expr)


def test_prometheus_gets_in_to_the_port_of_the_metrics_and_scrapes_that_port():
    (policy,) = documents_in(MONITORING / "network-policy.yaml")
    ours = {"namespaceSelector": {"matchLabels": {"moaa-ray/monitoring": "true"}}}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"] == [{"from": [ours], "ports": [{"protocol": "TCP", "port": 8080}]}]
    (monitor,) = documents_in(MONITORING / "pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert int(endpoint["interval"].removesuffix("s")) <= 15  # gauges are gone after 20 s
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    for pod in PODS:  # KubeRay adds this port, at 8080, where no manifest says otherwise
        assert "metrics-export-port" not in pod.group["rayStartParams"]
        assert not any(port["name"] == "metrics" for port in pod.container.get("ports", []))


def test_what_is_for_the_operator_of_prometheus_is_selected_alike():
    (monitor,), (rules,) = documents_in(MONITORING / "pod-monitor.yaml"), documents_in(MONITORING / "rules.yaml")
    assert monitor["apiVersion"] == rules["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"] == rules["metadata"]["labels"]
    assert set(rules["spec"]) == {"groups"}
    for group in GROUPS:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert set(rule) | {"for"} == {"alert", "expr", "for", "labels", "annotations"}
