# What a node of the cluster needs: Ray, torch and the other dependencies, at the versions of
# constraints.txt. This package is not in it: each job brings its own sources (`morel submit`).
#
#   docker build -t morel:2.60.0 .
FROM python:3.11-slim-bookworm

# rsync, ssh and ps are what Ray's cluster launcher uses inside the container; wget what KubeRay
# asks a node's health with; a compiler what `training.compile` calls.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray

COPY pyproject.toml constraints.txt /tmp/build/
# boto3: the autoscaler starts AWS instances from the head. psycopg: MLflow's database, if it is
# spoken to directly.
RUN cd /tmp/build \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt 'boto3>=1.40' 'psycopg2-binary>=2.9' \
    && rm -rf /tmp/build

USER ray
WORKDIR /home/ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
