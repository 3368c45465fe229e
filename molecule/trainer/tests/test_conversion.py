"""Weights that are a pickle are converted by the command that `debzero check` names, in a sandbox of this systemd."""

import json

SAVE = """
import transformers
settings = transformers.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=32)
transformers.BertModel(settings).save_pretrained("/srv/pickled", safe_serialization=False)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
with open("/srv/pickled/vocab.txt", "w") as file:
    file.write(chr(10).join(words))
"""
JOB = "{model: /srv/pickled, data: {dataset: debian-sections}, output: /var/lib/debzero/pickled}"


def test_the_command_that_check_names_converts_the_weights(host):
    host.check_output(f"/opt/debzero/venv/bin/python -c '{SAVE}' && echo '{JOB}' > /srv/pickled.yml")
    checked = host.run("debzero check --json /srv/pickled.yml")
    [problem] = [found for found in json.loads(checked.stdout)["problems"] if found["key"] == "model"]
    assert checked.rc == 2 and "pytorch_model.bin alone" in problem["reason"], problem
    host.check_output(problem["fix"].partition("sandbox: ")[2])
    again = host.run("debzero check --json /srv/pickled.yml")
    assert "model" not in [found["key"] for found in json.loads(again.stdout).get("problems", [])], again.stdout
