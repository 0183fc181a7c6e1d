// SPDX-License-Identifier: Apache-2.0
// llama.cpp behind the protocol of `moge bench engine --stdin`: a line asks for work, a line of
// JSON answers.  It speaks to node-llama-cpp's binding below the package's own batching, so that
// one pass is one llama_decode.
//
//     node llama_peer.mjs MODULES MODEL THREADS DEPTH PREFILL ROWS REPEATS SECONDS
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [modules, modelPath, ...numbers] = process.argv.slice(2);
const [threads, depth, prefill, rowsMax, repeats, seconds] = numbers.map(Number);
const entry = path.join(modules, "node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(path.resolve(entry)));

const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: "error"});
const model = await llama.loadModel({modelPath, useMmap: true});
const contextEach = Math.ceil((Math.max(prefill, depth + rowsMax) + 1) / 256) * 256;
const context = new llama._bindings.AddonContext(model._model, {
    contextSize: contextEach * rowsMax, batchSize: Math.max(prefill, rowsMax, 256),
    sequences: rowsMax, flashAttention: "auto", threads});
if (!await context.init())
    throw new Error("llama.cpp made no context");
const sampler = new llama._bindings.AddonSampler(model._model);
sampler.applyConfig({temperature: 0});
const vocabulary = [...model.iterateAllTokens()].length;

const randomTokens = (n) =>
    Uint32Array.from({length: n}, () => Math.floor(Math.random() * vocabulary));
const lastOf = (n, nLogits) => Uint32Array.from({length: nLogits}, (_, i) => n - nLogits + i);

// One llama_decode; milliseconds, and where the wanted logits lie.
async function pass(sequences, pos, tokens, nLogits) {
    context.initBatch(sequences.length * tokens[0].length);
    const at = sequences.flatMap((s, i) => [
        ...context.addToBatch(s, pos, tokens[i], lastOf(tokens[i].length, nLogits))]);
    const start = performance.now();
    await context.decodeBatch();
    return {ms: performance.now() - start, at};
}

async function history(sequence) {
    context.disposeSequence(sequence);
    for (let pos = 0; pos < depth; pos += 256)
        await pass([sequence], pos, [randomTokens(Math.min(256, depth - pos))], 0);
}

const warm = new Set(); // what was measured before

async function measure(work, n) {
    const sequences = work === "batch" ? [...Array(n).keys()] : [0];
    const rows = work === "batch" ? 1 : n, pos = work === "prefill" ? 0 : depth;
    const times = [];
    let begin = performance.now();
    const enough = (i) => i >= repeats && performance.now() - begin >= seconds * 1e3;
    for (let i = warm.has(work + n) ? 0 : -1; !enough(i); i++) {
        for (const s of sequences)
            pos > 0 ? context.removeTokenCellsFromSequence(s, pos, -1) : context.disposeSequence(s);
        const {ms} = await pass(sequences, pos, sequences.map(() => randomTokens(rows)),
                                work === "prefill" ? 1 : rows);
        if (i < 0) // the first ever is not counted
            begin = performance.now();
        else
            times.push(ms);
    }
    warm.add(work + n);
    if (work === "prefill")
        await history(0);
    times.sort((a, b) => a - b);
    return {work, rows: n, ms_median: times[times.length >> 1], repeats: times.length};
}

// [[token, distance in logits to the second], ...] behind each of the last n tokens.
async function likeliest(n, tokens) {
    context.disposeSequence(0);
    const {at} = await pass([0], 0, [Uint32Array.from(tokens)], n);
    const out = [];
    for (const row of at) {
        const [token, , , logits] = await context.sampleToken(
            row, sampler, false, false, [[], true, false, true, 2]);
        const byToken = new Map(); // pairs of token and logit, the largest named twice
        for (let j = 0; j < logits.length; j += 2)
            byToken.set(logits[j], logits[j + 1]);
        const [first, second] = [...byToken.values()].sort((a, b) => b - a);
        out.push([token, first - second]);
    }
    await history(0);
    return {likeliest: out};
}

await history(0);
for (let s = 1; s < rowsMax; s++) // the same history in other cells: as dear to read as another
    await context.copySequenceStateFromOtherSequence(s, 0);
const backend = fs.readFileSync("/proc/self/maps", "utf8").match(/libggml-cpu-(\w+)\.so/)?.[1];
console.log(JSON.stringify({backend, system: llama.systemInfo}));
for await (const line of readline.createInterface({input: process.stdin})) {
    const [work, ...rest] = line.split(" ");
    const [n, ...ids] = rest.map(Number);
    console.log(JSON.stringify(work === "likeliest" ? await likeliest(n, ids)
                                                    : await measure(work, n ?? 1)));
}
process.exit(0);
