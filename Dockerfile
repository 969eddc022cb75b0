# The image of replicator: one static binary, pg_dump and psql beside it, an unprivileged numeric user.
#
#   docker build -t replicator .
#
# Every base is an argument, so that a mirror or a locally made image can stand in. pg_dump must be at least as new as every server that
# it dumps: the default, 18, covers all supported sources (13 to 18).
ARG BUILD_IMAGE=golang:1.26-trixie
ARG CLIENT_IMAGE=postgres:18-trixie
ARG RUNTIME_IMAGE=debian:trixie-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# Modules first: they change seldom, so that their layer is used again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/replicator ./cmd/replicator

# The two client programs and the libraries they load, without the C library: that one is the run-time image's own.
FROM ${CLIENT_IMAGE} AS client
ARG PG_MAJOR=18
RUN set -eu; \
    mkdir -p /out/bin /out/lib; \
    for program in pg_dump psql; do \
      binary="/usr/lib/postgresql/${PG_MAJOR}/bin/${program}"; \
      cp -L "${binary}" /out/bin/; \
      ldd "${binary}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' >>/tmp/libraries; \
    done; \
    sort -u /tmp/libraries | grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|libutil)\.so' | \
      while read -r library; do cp -L "${library}" /out/lib/; done; \
    LD_LIBRARY_PATH=/out/lib /out/bin/pg_dump --version

FROM ${RUNTIME_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="replicator" \
      org.opencontainers.image.description="Moves a live application's Postgres and Redis from one side to the other, and back if need be" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=client /out/bin/ /usr/local/bin/
COPY --from=client /out/lib/ /usr/local/lib/postgresql-client/
RUN echo /usr/local/lib/postgresql-client >/etc/ld.so.conf.d/00-postgresql-client.conf \
    && ldconfig \
    && pg_dump --version \
    && psql --version
COPY --from=build /out/replicator /usr/local/bin/replicator
# Numeric, so that Kubernetes can see that it is not root. /tmp is the only place that anything is written to.
USER 65532:65532
WORKDIR /tmp
ENV HOME=/tmp
# 8080: admin API and status page, 9464: metrics and health. Both listen on 127.0.0.1 unless configured otherwise.
EXPOSE 8080 9464
ENTRYPOINT ["/usr/local/bin/replicator"]
CMD ["run"]
