// Ask a Fathom server from Go:
//
//	go mod init example.com/shop
//	protoc -I protos --go_out=. --go-grpc_out=. \
//	    --go_opt=module=example.com/shop,Mfathom/v1/recommender.proto=example.com/shop/fathomv1 \
//	    --go-grpc_opt=module=example.com/shop,Mfathom/v1/recommender.proto=example.com/shop/fathomv1 \
//	    fathom/v1/recommender.proto
//	go mod tidy && go build -o recommend .
//	./recommend -target 127.0.0.1:50051 50,172,181
//	FATHOM_TOKEN=fathom_... ./recommend -target recommender.example.org:443 -ca ca.pem 50,172,181
//
// Refused and failed calls are tried again by gRPC itself, within the deadline, and after the time that a full server asks
// for. For several servers behind one name, the policy round_robin spreads calls over them and watches their health.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health"
	"google.golang.org/grpc/status"

	"example.com/shop/fathomv1"
)

const calls = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "fathom.v1.Recommender"},
  "methodConfig": [{
    "name": [{"service": "fathom.v1.Recommender"}],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}`

// token is an API key or a JSON Web Token, which gRPC sends over TLS only.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (token) RequireTransportSecurity() bool { return true }

func main() {
	target := flag.String("target", "127.0.0.1:50051", "host:port of the server, or dns:///host:port")
	ca := flag.String("ca", "", "TLS with this certificate authority (PEM)")
	flag.Parse()
	if err := recommend(*target, *ca, strings.Split(flag.Arg(0), ",")); err != nil {
		answer := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", answer.Code(), answer.Message())
		os.Exit(1)
	}
}

func recommend(target, ca string, items []string) error {
	options, err := options(ca, os.Getenv("FATHOM_TOKEN"))
	if err != nil {
		return err
	}
	// From gRPC 1.63 on, grpc.NewClient does the same.
	connection, err := grpc.Dial(target, options...)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request := &fathomv1.RecommendRequest{ItemIds: items, K: 5, IncludeTitles: true}
	answer, err := fathomv1.NewRecommenderClient(connection).Recommend(ctx, request)
	if err != nil {
		return err
	}
	fmt.Printf("depth %d: %s\n", answer.Depth, answer.Why)
	for _, item := range answer.Items {
		fmt.Printf("%.4f  %s  %s\n", item.Score, item.Id, item.Title)
	}
	return nil
}

func options(ca, key string) ([]grpc.DialOption, error) {
	found := []grpc.DialOption{grpc.WithDefaultServiceConfig(calls)}
	if ca == "" {
		// From gRPC 1.39 on, grpc.WithTransportCredentials(insecure.NewCredentials()).
		return append(found, grpc.WithInsecure()), nil
	}
	tls, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		return nil, err
	}
	found = append(found, grpc.WithTransportCredentials(tls))
	if key != "" {
		found = append(found, grpc.WithPerRPCCredentials(token(key)))
	}
	return found, nil
}
