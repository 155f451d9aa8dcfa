import pytest
from pydantic import ValidationError

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.judging import CriteriaPass
from moaa_ray.core.scoring import ScorePass
from moaa_ray.errors import ConfigError
from moaa_ray.lines.judge import JudgeLine, judge_in_use, judge_line, plan_input, prompt_versions
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.recipe import PreferenceRecipe
from moaa_ray.settings.preference import ASPECTS, AspectsJudge, LlmJudge, MixtureJudge, SampleConfig, judge_models

PAPER = {
    "kind": "mixture",
    "proposers": [{"model": "gemma"}, {"model": "llama"}, {"model": "qwen"}],
    "aggregator": {"model": "qwen"},
}
SINGLE = {"kind": "llm", "model": "qwen"}
JURY = {"kind": "jury", "members": [{"model": "qwen", "name": "strict"}, {"model": "qwen", "name": "kind"}]}
REWARD = {"kind": "score", "model": "reward"}
RATES = {"kind": "aspects", "model": "qwen", "aspects": ["honesty", "depth"]}


def recipe(**judges) -> PreferenceRecipe:
    fake = {"engine": "fake", "completion_tokens": 100}
    models = dict.fromkeys(("gemma", "llama", "qwen", "reward"), fake)
    return PreferenceRecipe.model_validate({"name": "r", "models": models, "judges": judges})


def line(judge: dict, num_candidates: int = 5) -> JudgeLine:
    return judge_line(recipe(j=judge).judges["j"], run_seed=7, num_candidates=num_candidates)


def names(judge: dict, num_candidates: int = 5) -> list[str]:
    return [p.name for p in line(judge, num_candidates).passes]


def test_the_papers_judge_asks_for_criteria_then_for_assessments_then_for_verdicts():
    assert [(p.name, p.engine) for p in line(PAPER).passes] == [
        ("criteria1", "gemma"),
        ("criteria2", "gemma"),
        ("assess.gemma", "gemma"),
        ("assess.llama", "llama"),
        ("assess.qwen", "qwen"),
        ("decide.qwen", "qwen"),
    ]
    assert [p.is_final for p in line(PAPER).passes] == [False] * 5 + [True]


def test_the_papers_judges_are_asked_at_temperature_0_with_2048_tokens():
    assert {(p.sampling.temperature, p.sampling.max_tokens) for p in line(PAPER).passes} == {(0.0, 2048)}


def test_who_chooses_criteria_and_how_often_is_the_recipes_word():
    by_llama = {**PAPER, "criteria_by": "llama", "criteria_attempts": 3}
    assert [p.engine for p in line(by_llama).passes if isinstance(p, CriteriaPass)] == ["llama"] * 3
    by_aggregator = {**PAPER, "aggregator": {"model": "qwen", "name": "head"}, "criteria_by": "head"}
    assert [p.engine for p in line(by_aggregator).passes[:2]] == ["qwen", "qwen"]
    assert names({**PAPER, "criteria": False}) == ["assess.gemma", "assess.llama", "assess.qwen", "decide.qwen"]


def test_swapping_the_judge_changes_only_the_passes():
    assert names(SINGLE) == ["decide.qwen"]
    assert names({**SINGLE, "criteria": True}) == ["criteria1", "criteria2", "decide.qwen"]
    assert names(JURY) == ["decide.strict", "decide.kind"]
    assert names(REWARD) == ["score"]
    assert names(RATES) == ["rate.qwen"]
    for judge in (PAPER, SINGLE, JURY, REWARD, RATES):
        work = line(judge).work("judge")
        assert work.inputs == (CANDIDATES,)
        assert work.columns == [CANDIDATES, *names(judge)]
        assert work.passes[-1].is_final


def test_a_reward_model_draws_nothing_and_an_llm_that_rates_has_ultrafeedbacks_aspects():
    (scorer,) = line(REWARD).passes
    assert (scorer.sampling.max_tokens, scorer.sampling.temperature) == (1, 0.0)
    (rater,) = line({"kind": "aspects", "model": "qwen"}).passes
    assert isinstance(rater, ScorePass)
    assert rater.aspects == ASPECTS == ("instruction following", "honesty", "truthfulness", "helpfulness")


def test_a_knockout_repeats_the_passes_round_by_round():
    """Five candidates: three rounds."""
    assert names({**SINGLE, "schedule": "knockout"}) == ["decide.qwen.r1", "decide.qwen.r2", "decide.qwen.r3"]
    knockout = line({**PAPER, "schedule": "knockout"})
    assert len(knockout.passes) == 18
    assert [p.name for p in knockout.passes[6:8]] == ["criteria1.r2", "criteria2.r2"]
    assert [p.is_final for p in knockout.passes] == [False] * 17 + [True]
    assert knockout.passes[-1].reads[:3] == (CANDIDATES, "decide.qwen.r1", "decide.qwen.r2")


def loads(judge: dict, *, num: int = 5, window: int | None = None) -> dict[str, PassLoad]:
    made = recipe(j=judge)
    plan = plan_input(made, made.judges["j"], num_candidates=num)
    return dict(plan.loads(dict.fromkeys(("gemma", "llama", "qwen", "reward"), window)))


def asked(judge: dict, *, num: int = 5) -> dict[str, float]:
    return {name: load.num_requests for name, load in loads(judge, num=num).items()}


def test_the_plan_counts_ninety_requests_for_five_candidates():
    """80 judgments and 10 for criteria; second attempts are not expected."""
    assert asked(PAPER) == {
        "criteria1": 10,
        "criteria2": 0,
        "assess.gemma": 20,
        "assess.llama": 20,
        "assess.qwen": 20,
        "decide.qwen": 20,
    }
    assert asked(JURY, num=3) == {"decide.strict": 6, "decide.kind": 6}
    assert asked(REWARD) == {"score": 5}
    assert asked(RATES) == {"rate.qwen": 10}


@pytest.mark.parametrize(("num", "matches"), [(2, [1]), (3, [1, 2]), (5, [2, 2, 2]), (7, [3, 4, 2]), (8, [4, 4, 2])])
def test_the_plan_counts_the_matches_of_a_knockout(num, matches):
    """Two orders each; after the first round there are two brackets."""
    assert list(asked({**SINGLE, "schedule": "knockout"}, num=num).values()) == [2 * count for count in matches]


def test_the_plan_sums_what_stands_in_a_prompt():
    """Plan: 250 for the request and 600 for a candidate, 250 for the template. Fake models write 100 tokens.

    Assess: 250 + 2 x 600 + 250 = 1700; decide: and three assessments of 100. Criteria are short: 60. A reward model
    reads the conversation alone and writes nothing; a rating has one candidate and the template.
    """
    paper = loads(PAPER)
    assert paper["criteria1"] == PassLoad(num_requests=10, prompt_tokens=1700, completion_tokens=60)
    assert paper["assess.llama"] == PassLoad(num_requests=20, prompt_tokens=1700, completion_tokens=100)
    assert paper["decide.qwen"] == PassLoad(num_requests=20, prompt_tokens=2000, completion_tokens=100)
    assert loads(REWARD)["score"] == PassLoad(num_requests=5, prompt_tokens=850, completion_tokens=0)
    assert loads(RATES)["rate.qwen"] == PassLoad(num_requests=10, prompt_tokens=1100, completion_tokens=100)


def test_the_plan_cuts_prompts_to_what_the_window_leaves_beside_the_answer():
    """A window of 4,000 less max_tokens 2,048."""
    assert loads(PAPER, window=4000)["decide.qwen"].prompt_tokens == 1952
    assert loads(PAPER, window=4000)["assess.qwen"].prompt_tokens == 1700


def test_the_judge_in_use_is_the_one_named_or_the_only_one():
    assert judge_in_use(recipe(paper=PAPER)) == "paper"
    two = recipe(paper=PAPER, single=SINGLE)
    with pytest.raises(ConfigError, match="the recipe's judges are paper, single; define one under `judges` and name"):
        judge_in_use(two)
    named = two.model_copy(update={"judge": two.judge.model_copy(update={"use": "single"})})
    assert judge_in_use(named) == "single"
    with pytest.raises(ConfigError, match="judges are none"):
        judge_in_use(recipe())


def test_every_wording_is_part_of_what_made_a_verdict():
    versions = prompt_versions()
    assert versions["prompts.version"] == "judge/1"
    assert len(set(versions.values())) == len(versions)


def test_the_models_that_a_judge_asks_are_told_in_line_order():
    judges = recipe(paper=PAPER, jury=JURY, reward=REWARD, rates=RATES).judges
    assert judge_models(judges["paper"]) == ["gemma", "llama", "qwen", "qwen"]
    assert judge_models(judges["jury"]) == ["qwen", "qwen"]
    assert judge_models(judges["reward"]) == ["reward"]
    assert judge_models(judges["rates"]) == ["qwen"]


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({**PAPER, "proposers": []}, "at least 1 item"),
        ({**PAPER, "proposers": [{"model": "a"}, {"model": "a"}]}, "proposers: two are called 'a'"),
        ({**PAPER, "criteria_by": "gpt"}, "criteria_by = 'gpt' is none of gemma, llama, qwen, qwen; name one of them"),
        ({"kind": "jury", "members": [{"model": "a"}]}, "at least 2 items"),
        ({"kind": "jury", "members": [{"model": "a"}, {"model": "a"}]}, "members: two are called 'a'"),
        (
            {"kind": "jury", "members": [{"model": "a"}, {"model": "a", "name": "a.r1"}]},
            "members: one is called 'a.r1', and",
        ),
        ({**RATES, "aspects": ["honesty", "depth", "honesty"]}, "aspects: 'honesty' stands there twice"),
        ({**RATES, "aspects": ["honesty", ""]}, "at least 1 character"),
        ({**RATES, "aspects": []}, "at least 1 item"),
        ({**SINGLE, "schedule": "swiss"}, "'all_pairs' or 'knockout'"),
        ({**SINGLE, "max_missing_fraction": 1.0}, "less than 1"),
        ({"kind": "oracle", "model": "a"}, "'mixture', 'llm', 'jury', 'score', 'aspects'"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_with_the_way_out(judge, told):
    with pytest.raises(ValidationError) as caught:
        recipe(j=judge)
    assert told in str(caught.value)


def test_more_candidates_wanted_than_sampled_are_refused():
    with pytest.raises(ValidationError, match=r"min_candidates = 6 is above num_candidates = 5, .*; lower it"):
        SampleConfig(min_candidates=6)
    with pytest.raises(ValidationError, match="greater than 0"):
        SampleConfig(temperature=0.0)


def test_the_paper_is_the_default():
    assert (SampleConfig().num_candidates, SampleConfig().temperature) == (5, 0.8)
    judge = MixtureJudge.model_validate(PAPER)
    assert (judge.criteria, judge.criteria_attempts, judge.schedule) == (True, 2, "all_pairs")
    assert judge.max_missing_fraction == 0.2
    assert not LlmJudge.model_validate(SINGLE).criteria
    assert AspectsJudge(kind="aspects", model="qwen").temperature == 0.0
