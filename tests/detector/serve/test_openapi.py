"""What /openapi.json promises is kept whatever is sent."""

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
positive_data_acceptance = schemathesis.checks.load_all_checks() or schemathesis.checks.CHECKS.get_one(
    "positive_data_acceptance"
)

OPERATIONS = {
    "POST /v1/predict", "POST /v1/explain", "GET /v1/model", "GET /healthz", "GET /readyz", "GET /metrics",
}  # fmt: skip


@pytest.mark.parametrize("token", [None, "sesame"])
def test_every_answer_to_generated_requests_is_as_documented(serve, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with serve(token) as live:
        check_all(schemathesis.openapi.from_url(live.url + "/openapi.json"), headers)


def check_all(schema, headers: dict[str, str]) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} == OPERATIONS

    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(mode))
            def check(case):
                # that a string is binary does not make it an image
                case.call_and_validate(timeout=20, headers=headers, excluded_checks=[positive_data_acceptance])

            takes_nothing = not (operation.query or operation.body)
            if mode is schemathesis.GenerationMode.POSITIVE or not takes_nothing:
                check()
