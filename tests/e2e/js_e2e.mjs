// SPDX-License-Identifier: Apache-2.0
// Streams from JavaScript: @grpc/grpc-js as users have it, and raw HTTP/2 for what no well-behaved
// client does (a reader that stops reading, a deadline that only the server watches).
import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import fs from 'node:fs';
import http2 from 'node:http2';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import {fileURLToPath} from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const build = process.env.MOGE_BUILD ?? path.join(root, 'build/release');
const golden = path.join(root, 'tests/golden');
let grpc, loader;
try {
  grpc = (await import('@grpc/grpc-js')).default;
  loader = (await import('@grpc/proto-loader')).default;
} catch (error) {
  console.log('SKIP: @grpc/grpc-js is not installed; npm ci --prefix tests/e2e installs it');
  process.exit(77);
}

const place = fs.mkdtempSync(path.join(os.tmpdir(), 'moged-js-'));
const socket = path.join(place, 's');
const address = 'unix:' + socket;
const sleep = ms => new Promise(done => setTimeout(done, ms));

function daemonStart(...options) {
  // The daemon dies with this process, however that ends.
  const args = ['--pdeathsig', 'KILL', path.join(build, 'moged'), '--listen', address, '--model',
    path.join(golden, 'tiny-target.gguf'), '--draft', path.join(golden, 'tiny-draft.gguf')];
  const child = spawn('setpriv', args.concat(options), {stdio: ['ignore', 'ignore', 'pipe']});
  child.log = '';
  child.stderr.on('data', data => { child.log += data; });
  child.ended = new Promise(done => child.on('exit', code => done(code)));
  return child;
}

async function daemonReady(client, child) {
  for (let i = 0; i < 120; i++) {
    if (child.exitCode !== null) throw new Error('moged ended: ' + child.log);
    const up = await new Promise(done => client.waitForReady(Date.now() + 500, e => done(!e)));
    if (up) return;
  }
  throw new Error('moged did not answer: ' + child.log);
}

const definition = loader.loadSync('moge/v1/moge.proto',
  {includeDirs: [path.join(root, 'proto')], keepCase: true, longs: String, enums: String,
    oneofs: true, defaults: true});
const {Moge} = grpc.loadPackageDefinition(definition).moge.v1;
const connect = () => new Moge(address, grpc.credentials.createInsecure(),
  {'grpc.enable_http_proxy': 0, 'grpc.use_local_subchannel_pool': 1});

function requestOf(seed, maxTokens = 48, mode = 'MODE_AUTO') {
  return {text: `insert into t${seed} values (`, sampling: {temperature: seed % 2, seed},
    stopping: {max_tokens: maxTokens, ignore_eos: true}, speculation: {mode}};
}

function collect(client, request, options = {}) {
  return new Promise((resolve, reject) => {
    const out = {text: '', ids: [], finish: null};
    const call = client.Generate(request, options);
    call.on('data', r => {
      out.text += r.text;
      out.ids.push(...r.token_ids);
      out.finish = r.finish ?? out.finish;
    });
    call.on('error', reject);
    call.on('end', () => resolve(out));
  });
}

// One Generate over raw HTTP/2 with a window of so many bytes.
function rawGenerate(request, {window, headers = {}}) {
  const session = http2.connect('http://localhost', {
    createConnection: () => net.connect(socket), settings: {initialWindowSize: window}});
  session.on('error', () => {});
  const stream = session.request({':method': 'POST', ':path': '/moge.v1.Moge/Generate',
    'content-type': 'application/grpc', te: 'trailers', ...headers});
  const body = definition['moge.v1.Moge'].Generate.requestSerialize(request);
  const frame = Buffer.alloc(5 + body.length);
  frame.writeUInt32BE(body.length, 1);
  body.copy(frame, 5);
  stream.end(frame);
  return {session, stream};
}

const tests = {
  async 'sixty-four streams at once, over eight connections'(client) {
    const clients = Array.from({length: 8}, connect);
    const all = await Promise.all(Array.from({length: 64},
      (_, i) => collect(clients[i % 8], requestOf(i))));
    for (let i = 0; i < 64; i += 13) {
      const off = await collect(client, requestOf(i, 48, 'MODE_OFF'));
      assert.equal(all[i].text, off.text);
      assert.deepEqual(all[i].ids, off.ids);
      assert.equal(all[i].finish.usage.output_tokens, 48);
    }
    clients.forEach(c => c.close());
  },

  async 'cancel in mid-stream'(client) {
    for (let i = 0; i < 20; i++) {
      const code = await new Promise((resolve, reject) => {
        const call = client.Generate(requestOf(i, 400));
        call.once('data', () => call.cancel());
        call.on('error', error => resolve(error.code));
        call.on('end', () => reject(new Error('ended though cancelled')));
      });
      assert.equal(code, grpc.status.CANCELLED);
    }
    await collect(client, requestOf(1));
  },

  async 'a deadline'(client) {
    const late = await Promise.allSettled(Array.from({length: 64},
      (_, i) => collect(client, requestOf(i, 400), {deadline: Date.now() + 40})));
    const codes = new Set(late.filter(r => r.status === 'rejected').map(r => r.reason.code));
    assert.deepEqual([...codes], [grpc.status.DEADLINE_EXCEEDED]);
  },

  async 'a bad request'(client) {
    await assert.rejects(collect(client, {text: ''}), {code: grpc.status.INVALID_ARGUMENT});
    await assert.rejects(collect(client, {...requestOf(1), sampling: {top_p: 7}}),
      error => error.code === grpc.status.INVALID_ARGUMENT && /top_p/.test(error.details));
  },

  async 'a reader that stops reading stalls alone'(client) {
    // 20 alternatives a token make some hundred bytes of each: far more than the window.
    const {session, stream} = rawGenerate({...requestOf(3, 400), logprobs: 20}, {window: 2000});
    stream.pause();
    await new Promise(done => stream.once('response', done));
    const others = await Promise.all(Array.from({length: 8},
      (_, i) => collect(client, requestOf(i, 200))));
    for (const other of others) assert.equal(other.ids.length, 200);
    assert.equal(stream.closed, false, 'the stalled stream was given up too early');
    // It goes on where it was when its reader comes back.
    let bytes = 0;
    const status = await new Promise((resolve, reject) => {
      stream.on('data', data => { bytes += data.length; });
      stream.on('trailers', trailers => resolve(trailers['grpc-status']));
      stream.on('error', reject);
      stream.resume();
    });
    assert.equal(status, '0');
    assert.ok(bytes > 20000, `only ${bytes} bytes came`);
    session.destroy();
  },

  async 'a deadline that the server watches, of a reader that has stopped'(client) {
    const {session, stream} = rawGenerate({...requestOf(3, 400), logprobs: 20},
      {window: 2000, headers: {'grpc-timeout': '300m'}});
    let bytes = 0, status = 'none';
    stream.on('error', () => {});
    stream.on('trailers', trailers => { status = trailers['grpc-status']; });
    const closed = new Promise(done => stream.on('close', () => done(true)));
    stream.pause();
    await sleep(1500);
    stream.on('data', data => { bytes += data.length; });
    stream.resume();
    const ended = await Promise.race([closed, sleep(20000).then(() => false)]);
    assert.ok(ended, 'the server kept a stream whose deadline had passed');
    assert.notEqual(status, '0');
    assert.ok(bytes < 20000, `${bytes} bytes came after the deadline`);
    session.destroy();
    await collect(client, requestOf(2, 400));
  },

  async 'a connection that is dropped in mid-stream'(client) {
    for (let i = 0; i < 10; i++) {
      const {session, stream} = rawGenerate({...requestOf(i, 400), logprobs: 20}, {window: 2000});
      stream.on('error', () => {});
      await new Promise(done => stream.once('response', done));
      session.destroy();
    }
    await Promise.all([collect(client, requestOf(2, 400)), collect(client, requestOf(4, 400))]);
  },
};

let failed = 0;
const child = daemonStart('--max-running', '12');
try {
  const client = connect();
  await daemonReady(client, child);
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test(client);
      console.log('ok      ' + name);
    } catch (error) {
      failed++;
      console.log('FAILED  ' + name + '\n' + (error.stack ?? error));
    }
  }
  client.close();
} finally {
  child.kill('SIGTERM');
  const code = await Promise.race([child.ended, sleep(100000).then(() => 'did not end')]);
  if (code !== 0) {
    failed++;
    console.log(`FAILED  moged's end: ${code}\n${child.log}`);
    child.kill('SIGKILL');
  }
  fs.rmSync(place, {recursive: true});
}
console.log(`${Object.keys(tests).length} tests, ${failed} failed`);
process.exit(failed ? 1 : 0);
