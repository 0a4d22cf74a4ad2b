# Two images of one wheel: `serve` answers requests, `train` does everything else (Airflow, training, publication, MLflow's server).
#   docker build --target serve --tag moon-serve .
#   docker build --target train --tag moon-train .
# For NVIDIA GPUs: --build-arg ACCELERATOR=gpu --build-arg TORCH_BACKEND=cu130. Where wheels come from a directory or an index of
# your own: --build-arg UV_FIND_LINKS=… --build-arg UV_EXTRA_INDEX_URL=…; an empty TORCH_BACKEND leaves torch to these.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS wheel
ARG UV=0.13.9
ENV UV_SYSTEM_CERTS=1
RUN python -m venv /opt/uv && /opt/uv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check uv==${UV}
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY moon_ops moon_ops
COPY dags dags
COPY feature_repo feature_repo
COPY models models
ARG UV_FIND_LINKS=""
ARG UV_EXTRA_INDEX_URL=""
RUN /opt/uv/bin/uv build --quiet --wheel --out-dir /dist .

FROM python:${PYTHON} AS packages
COPY --from=wheel /opt/uv /opt/uv
COPY pyproject.toml constraints.txt /src/
ARG ACCELERATOR=cpu
RUN python -m venv --without-pip /opt/moon \
    && if [ "$ACCELERATOR" = cpu ]; then echo onnxruntime-gpu; fi > /src/excluded.txt
ENV UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON=/opt/moon/bin/python

FROM packages AS packages-serve
ARG ACCELERATOR=cpu
ARG UV_FIND_LINKS=""
ARG UV_EXTRA_INDEX_URL=""
# Left out is what no request needs: mypy and hf-xet, which Feast and tokenizers ask for; the packages' own tests and pages; Arrow Flight;
# and the bytecode of what is never imported.
RUN --mount=type=cache,target=/root/.cache/uv cd /src && printf 'mypy\nhf-xet\n' >> excluded.txt \
    && /opt/uv/bin/uv pip install --quiet --constraint constraints.txt --excludes excluded.txt \
    --requirement pyproject.toml --extra serve --extra postgres $(if [ "$ACCELERATOR" = cpu ]; then echo onnxruntime; fi) \
    && cd /opt/moon/lib/python3*/site-packages && rm -r feast/ui/build/static pyarrow/include pyarrow/*flight*.so* \
    && find . -type d -name tests -prune -exec rm -r {} + && find ibis dask sqlglot huggingface_hub -name '*.pyc' -delete
COPY --from=wheel /dist /dist
RUN /opt/uv/bin/uv pip install --quiet --no-deps /dist/*.whl

FROM packages AS packages-train
ARG ACCELERATOR=cpu
ARG TORCH_BACKEND=cpu
ARG UV_FIND_LINKS=""
ARG UV_EXTRA_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/uv cd /src && /opt/uv/bin/uv pip install --quiet --constraint constraints.txt --excludes excluded.txt \
    ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} \
    --requirement pyproject.toml --extra serve --extra train --extra stack $(if [ "$ACCELERATOR" = cpu ]; then echo onnxruntime; fi)
# Copied and not mounted: a builder may not notice that what it mounts has changed.
COPY --from=wheel /dist /dist
RUN /opt/uv/bin/uv pip install --quiet --no-deps /dist/*.whl \
    && ln -s "$(/opt/moon/bin/python -c 'from moon_ops.settings import ROOT; print(ROOT / "dags")')" /opt/moon/dags

FROM python:${PYTHON} AS runtime
RUN groupadd --gid 10001 moon && useradd --uid 10001 --gid moon --no-create-home --home-dir /var/lib/moon --shell /usr/sbin/nologin moon \
    && install --directory --owner moon --group moon /var/lib/moon /var/log/airflow
# Written are the directories above and /tmp alone: the root of the file system may be read-only.
ENV PATH=/opt/moon/bin:$PATH HOME=/tmp MOON_HOME=/var/lib/moon PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache
WORKDIR /var/lib/moon
USER 10001:10001

FROM runtime AS train
COPY --from=packages-train /opt/moon /opt/moon
ENV AIRFLOW_HOME=/tmp/airflow AIRFLOW__CORE__DAGS_FOLDER=/opt/moon/dags AIRFLOW__CORE__LOAD_EXAMPLES=False
# What it does is said by its command; this only asks whether the interpreter and the package are whole.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s CMD ["python", "-c", "import moon_ops.settings"]
CMD ["moon", "--help"]
ARG MADE_OF=""
LABEL moon.made_of=${MADE_OF}

FROM runtime AS serve
COPY --from=packages-serve /opt/moon /opt/moon
ENV MOON_HOST=0.0.0.0
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8321/health', timeout=4)"]
CMD ["moon", "serve"]
ARG MADE_OF=""
LABEL moon.made_of=${MADE_OF}
