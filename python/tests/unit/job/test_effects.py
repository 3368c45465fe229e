"""Every key of a job and of DeepSpeed's JSON says what a change of it does to a run that has begun."""
from typing import get_args

from debzero.deepspeed_json import keys
from debzero.job.effects import EFFECTS, OF_THE_JSON
from debzero.job.reference import is_section, job_schema
from debzero.job.reference import keys as job_keys


def test_every_key_of_a_job_has_an_effect():
    schema = job_schema()
    written = {key.path for key in job_keys(schema) if not is_section(schema, key.path)}
    assert written - {OF_THE_JSON} == set(EFFECTS)


def test_every_key_of_the_json_that_does_something_has_an_effect():
    for section in keys.table().values():
        for key in section.keys.values():
            if key.kind.name != "section" and key.state in ("driven", "acts"):
                assert key.effect in get_args(keys.Effect), ".".join(key.path)
            assert set(key.inner.values()) <= set(get_args(keys.Effect))
