# Static binaries in images without anything else. Every RUN is a command and no shell
# line, so that the build image may be as small.
ARG GO_IMAGE=golang:1.26
FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY . .
ENV CGO_ENABLED=0
# Small: without the Redis in memory of the demo, without symbols, and without the
# inlining of the Redis client, which waits for the network anyway.
RUN ["go", "build", "-tags=container", "-trimpath", "-ldflags=-s -w", "-gcflags=github.com/redis/go-redis/v9/...=-l", "-o", "/out/", "./cmd/workerdemo"]

# The demo worker, the mock API and the stranger.
FROM scratch AS workerdemo
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/workerdemo /workerdemo
USER 65532:65532
ENTRYPOINT ["/workerdemo"]
