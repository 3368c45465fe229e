# The developer's front door; `make help` reads the texts behind the double hashes.
.DEFAULT_GOAL := help
.PHONY: help demo demo-clean controller deb runtime-debs bundle test test-quick test-long fuzz lint lock docs audit
.PHONY: clean bench-provision bench-train bench-predict bench-gpus bench-losses bench-memory bench-oom bench-published
.PHONY: bench-fused bench-link bench-start

# Without bytecode on the disk each start of a training compiles its libraries again: most of the time it takes.
unexport PYTHONDONTWRITEBYTECODE

# Tests marked prebuilt need the packaged DeepSpeed: the scenario deepspeed_wheel runs them in its container.
PLAY := .cache/controller/bin/ansible-playbook
PYTEST := PATH="$(CURDIR)/.cache/controller/bin:$$PATH" .cache/test/bin/python -m pytest -c python/pyproject.toml \
	python/tests

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: ## Provision a Debian 11 container with site.yml and train on it
	@ansible/demo

demo-clean: ## Remove this checkout's containers of demo and tests, the image, and all of .cache
	@ansible/clean

controller: ## Install Ansible for site.yml into .cache/controller
	@ansible/bootstrap

# What a build leaves in dist/: the playbook's name, and the container's.
IN_CONTAINER = DEBZERO_CONTAINER=$$(ansible/container $2) $(PLAY) -i inventory/demo molecule/shared/destroy.yml \
	molecule/shared/create.yml playbooks/$1.yml molecule/shared/destroy.yml

deb: ## Build dist/debzero_VERSION_all.deb in a clean Bullseye container
	@ansible/bootstrap containers
	$(call IN_CONTAINER,deb,deb)

# Before a container is made for it.
CUDAS := nvidia debian
CHECK_CUDA = $(if $(filter-out $(CUDAS),$(CUDA))$(word 2,$(CUDA)),$(error CUDA is '$(CUDA)', and must be nvidia or \
	debian, from whose archive the compiler comes; leave it out for hosts without GPUs))
NO_CUDA = $(if $(CUDA),$(error make bundle is for hosts without GPUs: leave CUDA out; for those with GPUs use \
	playbooks/bundle.yml (docs/deploy.md)))
CHECK_KEY = $(if $(KEY),$(if $(wildcard $(KEY)),,$(error KEY is '$(KEY)', and there is no such file)))

runtime-debs: ## Build dist/debzero-runtime*.deb, the Python environment, in a clean container; CUDA=nvidia for GPUs
	$(CHECK_CUDA)
	@ansible/bootstrap containers
	$(call IN_CONTAINER,runtime_debs,runtime-debs) \
		$(if $(CUDA),-e cuda_source=$(CUDA) -e deepspeed_wheel_accelerator=cuda)

bundle: ## Build dist/debzero-bundle_VERSION.tar in a clean container: all that hosts without internet need
	$(NO_CUDA)$(CHECK_KEY)
	@ansible/bootstrap containers
	$(call IN_CONTAINER,bundle,bundle) $(if $(KEY),-e repository_key=$(abspath $(KEY)))

test: ## Run lint, policies, units, the .deb, most roles in containers; what takes longer is in test-long
	@ansible/bootstrap tests
	$(PYTEST) -m "not prebuilt and not long"

test-quick: ## Run the tests that need neither a container nor many trainings
	@ansible/bootstrap tests
	$(PYTEST) -m "not container and not prebuilt and not long and not slow"

test-long: ## Run what takes too long for each change: kills at many moments, two hosts in containers
	@ansible/bootstrap tests
	$(PYTEST) -m "long and not prebuilt"

fuzz: ## Try damaged jobs, JSON, results, runs and data on their readers: make fuzz CASES=10000 of each kind
	@ansible/bootstrap tests
	$(PYTEST)/fuzz --cases $(or $(CASES),10000)

lint: ## Run the linters alone
	@ansible/bootstrap tests
	$(PYTEST)/lint

bench-provision: ## Time site.yml against the commands typed by hand, on bare containers without caches
	@ansible/bootstrap containers
	.cache/controller/bin/python ansible/bench_provision

bench-train: ## Race a tutorial's DeepSpeed script against debzero: same model, data, batch, 2 CPU ranks (12 minutes)
	@ansible/bootstrap tests
	.cache/test/bin/python python/benchmarks/race.py

bench-predict: ## `debzero predict` against a plain transformers pipeline: 10,000 rows, on this machine's processors
	@ansible/bootstrap tests
	.cache/test/bin/python python/benchmarks/predict.py

bench-gpus: ## On GPUs with current releases in $(PYTHON): debzero's stages beside DDP, FSDP2 and the Trainer
	$(or $(PYTHON),python3) python/benchmarks/gpus.py

bench-losses: ## On GPUs: whether every stage and engine trains as plain fp32 DDP does, and a resumed run as a whole one
	$(or $(PYTHON),python3) python/benchmarks/losses.py

bench-start: ## How long from `debzero train` to the first step with $(PYTHON), beside the imports alone
	$(or $(PYTHON),python3) python/benchmarks/start.py

bench-memory: ## On a GPU: `debzero plan` against the memory that 24 trainings really take
	$(or $(PYTHON),python3) python/benchmarks/memory.py --results .cache/bench/memory.json

bench-oom: ## On a GPU: a job whose memory shrinks while it trains
	$(or $(PYTHON),python3) python/benchmarks/oom.py

bench-published: ## On a GPU: what one GPU can measure of docs/benchmarks with `debzero bench` and `debzero tune`
	$(or $(PYTHON),python3) python/benchmarks/published.py

bench-fused: ## On a GPU: DeepSpeed's fused transformer layer beside BERT's own
	$(or $(PYTHON),python3) python/benchmarks/fused.py

bench-link: ## As root: `debzero plan --hosts` against the steps of two ranks with a slow link between them (40 minutes)
	@ansible/bootstrap tests
	.cache/test/bin/python python/benchmarks/link.py --results .cache/bench/link.json

lock: ## Resolve the Python packages anew, from the *.in files and stack.yml
	ansible/lock

docs: ## Write the roles' READMEs, docs/reference, docs/scale.md, the job file's schema and the SBOM from their sources
	@ansible/bootstrap tests
	.cache/controller/bin/python ansible/role_docs.py
	.cache/test/bin/python python/reference_docs.py
	.cache/test/bin/python python/scale_docs.py
	.cache/test/bin/python python/supply_chain.py

audit: ## List the advisories that the ledger lacks: make audit ADVISORIES=a checkout of a database (OSV format)
	@ansible/bootstrap tests
	.cache/test/bin/python python/supply_chain.py \
		--audit "$(or $(ADVISORIES),$(error set ADVISORIES to a checkout of an advisory database))"

clean: demo-clean ## Run demo-clean, and remove dist
	rm -rf dist
