// Ask a Fathom server from Node:  npm install && node recommend.js 127.0.0.1:50051 50,172,181
// Over TLS, with an API key:      FATHOM_CA=ca.pem FATHOM_TOKEN=fathom_... node recommend.js host:443 50,172,181
//
// The .proto is all that is needed. Refused and failed calls are tried again by gRPC itself, within the deadline, and after
// the time that a full server asks for.

import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTO =
  process.env.FATHOM_PROTO ??
  path.join(path.dirname(fileURLToPath(import.meta.url)), "../../protos/fathom/v1/recommender.proto");
const RETRIES = {
  methodConfig: [
    {
      name: [{ service: "fathom.v1.Recommender" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

const [target = "127.0.0.1:50051", items = ""] = process.argv.slice(2);
// Without defaults, a depth of 0 would be undefined.
const definition = loadSync(PROTO, { keepCase: true, longs: Number, defaults: true });
const { Recommender } = grpc.loadPackageDefinition(definition).fathom.v1;
const client = new Recommender(target, credentials(process.env.FATHOM_CA, process.env.FATHOM_TOKEN), {
  "grpc.service_config": JSON.stringify(RETRIES),
});

// ca: the certificate authority, a PEM file; without it there is no TLS, and without TLS no key is sent.
function credentials(ca, token) {
  if (!ca) return grpc.credentials.createInsecure();
  const tls = grpc.credentials.createSsl(readFileSync(ca));
  if (!token) return tls;
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return grpc.credentials.combineChannelCredentials(
    tls,
    grpc.credentials.createFromMetadataGenerator((_, done) => done(null, metadata)),
  );
}

const request = { item_ids: items.split(",").filter(Boolean), k: 5, include_titles: true };
client.Recommend(request, { deadline: Date.now() + 5000 }, (error, answer) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  console.log(`depth ${answer.depth}: ${answer.why}`);
  for (const item of answer.items) {
    console.log(`${item.score.toFixed(4)}  ${item.id}  ${item.title}`);
  }
});
