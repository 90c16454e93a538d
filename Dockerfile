# `lenext serve` in a container, on the CPU, as a user without rights.
#
#   docker build -t lenext .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/my-run:/classifier:ro" lenext
#
# /classifier is a run folder or a classifier file. What stands after the image's name takes its place, with any option
# of `lenext serve`: docker run ... lenext hf:USER/NAME --api-key SECRET

FROM python:3.12-slim AS build
COPY pyproject.toml README.md LICENSE /source/
COPY lenext /source/lenext
# Of equal versions pip takes PyTorch's own build for CPUs: the other one brings gigabytes of CUDA.
RUN python -m venv /opt/lenext \
    && /opt/lenext/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
       "/source[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 lenext
COPY --from=build /opt/lenext /opt/lenext
ENV PATH=/opt/lenext/bin:$PATH PYTHONUNBUFFERED=1
USER lenext
WORKDIR /home/lenext
EXPOSE 8000
# Whether it lives: /readyz says no while the queue is full, when a restart would only lose what waits in it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["lenext", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/classifier"]
