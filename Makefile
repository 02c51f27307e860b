# Every verb sets up what it needs. `make serve` and `make test` are all a newcomer has to know.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: install serve serve-vllm demo check test test-all vllm prove bench lock clean

install: .venv/.installed  ## a virtual environment with everything pinned

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

serve: install  ## the chat page and the API on http://127.0.0.1:8000, the learner beside them
	$(BIN)/hone serve --upgrade $(ARGS)

# Without VLLM_URL it starts the server that `make vllm` made, beside Hone and not on its port, and ends it with Hone.
VLLM_PYTHON ?= build/venvs/vllm/bin/python
VLLM_PORT ?= 8001
VLLM_FLAGS := --enable-lora --max-loras 8 --max-cpu-loras 16 --max-lora-rank 16 --max-num-batched-tokens 2048 \
	--generation-config vllm --logprobs-mode raw_logprobs --shutdown-timeout 20

serve-vllm: install  ## the same over vLLM: one on this machine, or VLLM_URL=http://HOST:PORT[,http://…]; see docs/vllm.md
	@url="$(VLLM_URL)"; \
	if [ -z "$$url" ]; then \
	  test -x $(VLLM_PYTHON) || { echo "run make vllm first, or name a server: make serve-vllm VLLM_URL=http://HOST:PORT"; exit 2; }; \
	  url=http://127.0.0.1:$(VLLM_PORT); \
	  echo "vLLM starts on $$url: a minute or more, in which Hone answers 503"; \
	  VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-1} \
	    VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 $(VLLM_PYTHON) -m vllm.entrypoints.openai.api_server \
	    --model server/demo_model --host 127.0.0.1 --port $(VLLM_PORT) $(VLLM_FLAGS) & \
	  vllm=$$!; trap 'kill $$vllm; wait $$vllm' EXIT; trap 'exit 130' INT TERM; \
	fi; \
	$(BIN)/hone serve --upgrade --engine vllm --vllm-url $$url $(ARGS)

demo: install  ## the whole story in a terminal: talk, pick, learn, swap, roll back
	$(BIN)/python -m learner demo $(ARGS)

check: install  ## lint, types, and the arrows between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py tests/test_docs.py

test: install  ## real parts, one seed, a tiny world: minutes
	$(BIN)/pytest -q -m "not full" $(ARGS)

vllm: install  ## a virtual environment with vLLM beside this one, for its tests and benchmarks: minutes, some GB
	$(BIN)/python -m tests.bench.serving prepare vllm

# Real vLLM is left out where no package index can be reached, which is said, and with HONE_TEST_VLLM_PYTHON= (empty);
# HONE_REQUIRE_PARTS=1 in the shell makes that a failure.
test-all: install  ## what `test` leaves out: both databases, a real browser, kill tests, real vLLM servers
	vllm="$${HONE_TEST_VLLM_PYTHON-$$($(BIN)/python -m tests.bench.serving prepare --where-possible vllm)}" && \
	HONE_REQUIRE_PARTS=1 HONE_TEST_VLLM_PYTHON="$$vllm" $(BIN)/pytest -q -m full $(ARGS)

prove: install  ## the full runs behind every figure in the docs: hours, resumable, one JSON line each
	$(BIN)/python -m tests.prove $(ARGS)

bench: install  ## performance, side by side
	$(BIN)/python -m tests.bench $(ARGS)

lock: install  ## pin what pyproject.toml allows today
	$(BIN)/python tests/lock.py > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
