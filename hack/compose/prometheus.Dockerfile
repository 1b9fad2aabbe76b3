# As much of prom/prometheus as manifests/compose.yaml uses; the program is built from its Go module: hack/e2e-compose.
ARG BUILD_IMAGE
FROM ${BUILD_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends busybox \
 && ln -s busybox /bin/wget \
 && install -d -o nobody -g nogroup /prometheus
COPY --from=programs prometheus promtool /bin/
USER nobody
WORKDIR /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
