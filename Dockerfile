# docker build -t tpla .
# docker run -p 127.0.0.1:8080:8080 -e TPLA_API_KEY=... -v tpla-models:/models tpla serve --listen 0.0.0.0:8080
ARG NODE=node:20-bookworm-slim

FROM ${NODE} AS build
WORKDIR /tpla
COPY package.json package-lock.json .npmrc tsconfig.json tsconfig.build.json ./
COPY scripts ./scripts
COPY config ./config
COPY model ./model
COPY collective ./collective
COPY worker ./worker
COPY coordinator ./coordinator
# Some benchmarks start ranks in their own process as tests do.
COPY test/helpers ./test/helpers
RUN npm run build
RUN npm prune --omit=dev --no-audit --no-fund

FROM ${NODE}
WORKDIR /tpla
COPY --from=build /tpla/package.json ./
COPY --from=build /tpla/node_modules ./node_modules
COPY --from=build /tpla/dist ./dist
COPY --from=build /tpla/config/examples ./config/examples
RUN ln -s /tpla/dist/coordinator/main.js /usr/local/bin/tpla && mkdir /models && chown node:node /models
# The default model is fetched to the volume once; a path under /models names another.
ENV TPLA_CACHE=/models
VOLUME /models
USER node
EXPOSE 8080 7070
ENTRYPOINT ["node", "/tpla/dist/coordinator/main.js"]
CMD ["--help"]
