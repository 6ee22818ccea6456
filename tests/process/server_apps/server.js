// A Node app as an operator would write it for Midstream: it listens on an inherited descriptor, and at TERM it accepts
// nothing more and ends its kept-alive connections with the next answer (server.close alone would wait for ever for a
// client that goes on asking).
const fs = require("fs");
const http = require("http");
const release = process.env.MIDSTREAM_RELEASE || "?";
let draining = false;
const server = http.createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const wait = url.pathname === "/slow" ? Number(url.searchParams.get("ms")) : 0;
  const held = () => url.pathname === "/held" && !fs.existsSync(url.search.slice(1));
  setTimeout(function answer() {
    if (held()) return setTimeout(answer, 20);
    if (draining) response.setHeader("Connection", "close");
    response.setHeader("X-Release", release);
    response.setHeader("Content-Length", release.length + 1);
    response.end(release + "\n");
  }, wait);
});
server.listen({ fd: Number(process.argv[2] || 3) });
process.on("SIGTERM", () => {
  draining = true;
  server.close(() => process.exit(0));
});
