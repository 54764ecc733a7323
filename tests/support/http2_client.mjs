// Calls the echo server of http2_echo.py with nghttp2, as Node has it. Prints what came of each call as JSON.
import http2 from 'node:http2';

const [address, count, size] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const session = http2.connect(`http://${address}`, { settings: { initialWindowSize: 1000 } });

function call(path, message) {
  return new Promise((resolve) => {
    const parts = [];
    const seen = { path, bytes: 0, status: null, reset: 0 };
    const stream = session.request({
      ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers',
    });
    const note = (headers) => { seen.status ??= headers['grpc-status'] ?? null; };
    stream.on('response', note);
    stream.on('trailers', note);
    stream.on('data', (each) => { parts.push(each); seen.bytes += each.length; });
    stream.on('error', () => {});
    stream.on('close', () => {
      seen.reset = stream.rstCode;
      seen.same = Buffer.concat(parts).equals(message);
      resolve(seen);
    });
    stream.end(message);
  });
}

function framed(length, fill) {
  const message = Buffer.alloc(5 + length, fill);
  message[0] = 0;
  message.writeUInt32BE(length, 1);
  return message;
}

const found = {
  small: await Promise.all(Array.from({ length: count }, (_, n) => call('/test.Service/Taken', framed(9, n % 256)))),
  large: await call('/test.Service/Taken', framed(size, 7)),
  chat: await call('/test.Service/Chat', Buffer.concat(Array.from({ length: 50 }, (_, n) => framed(n * 100, n)))),
  unknown: await call('/test.Service/None', framed(1, 1)),
};
session.close();
console.log(JSON.stringify(found));
