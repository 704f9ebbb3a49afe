"""What /openapi.json promises is kept whatever is sent."""

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
schemathesis.checks.load_all_checks()
CHECKS = schemathesis.checks.CHECKS

OPERATIONS = {
    "POST /v1/predict", "POST /v1/explain", "GET /v1/model", "GET /healthz", "GET /readyz", "GET /metrics",
}  # fmt: skip


@pytest.mark.parametrize("token", [None, "sesame"])
def test_every_answer_to_generated_requests_is_as_documented(serve, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with serve(token) as live:
        check_all(schemathesis.openapi.from_url(live.url + "/openapi.json"), headers)


def check_all(schema, headers: dict[str, str]) -> None:
    excluded = [CHECKS.get_one("positive_data_acceptance")]  # that a string is binary does not make it an image
    if headers:  # the token is sent where leaving it out is what was to be refused
        excluded.append(CHECKS.get_one("negative_data_rejection"))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} == OPERATIONS

    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=15,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(mode))
            def check(case):
                case.call_and_validate(timeout=20, headers=headers, excluded_checks=excluded)

            takes_nothing = not (operation.query or operation.body)
            if mode is schemathesis.GenerationMode.POSITIVE or not takes_nothing:
                check()
