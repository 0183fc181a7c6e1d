// SPDX-License-Identifier: Apache-2.0
// Ours against llama.cpp on one GGUF file, in one interleaved run: in every round each side does
// every piece of work once, so that whatever else the machine does meets both.  Figures are medians
// over the rounds, the ratio is the median of the rounds' ratios.  At the end both sides choose
// tokens behind the same prompts: the floats of two engines differ, so near ties may fall apart.
import {spawn} from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import {fileURLToPath} from "node:url";
import {parseArgs} from "node:util";

const here = path.dirname(fileURLToPath(import.meta.url));
const usage = `Usage: node compare.mjs --model FILE [options]
  --model FILE      GGUF file that both sides read (moge synth: bench/shapes/moge-3b-qwen2moe.ini)
  --moge FILE       the moge binary (build/release/moge)
  --modules DIR     node_modules with node-llama-cpp (node_modules here)
  --isa LEVEL       ours: at most scalar, avx2, avx512 or vnni (the best there is)
  --backend NAME    theirs: only this CPU backend, as haswell for AVX2 (the best there is)
  --threads N       of each side (2)
  --rows LIST       rows of one sequence and sequences together (1,4,8,32)
  --prefill N       tokens of a prefill pass, 0 for none (512)
  --depth N         positions already there when decoding (128)
  --rounds N        (5)
  --repeats N       passes of each work in a round (1), and at least
  --seconds S       for so long (0.2)
  --greedy N        greedy tokens to compare behind each of 4 prompts (64)
  --csv FILE        append a row for each line
  --machine NAME    the machine's name in it (this)
  --commit NAME     the commit's name in it (none)`;
const text = (byDefault) => ({type: "string", default: byDefault});
const {values: options} = parseArgs({options: {
    model: {type: "string"}, moge: text(path.join(here, "../../build/release/moge")),
    modules: text(path.join(here, "node_modules")), isa: text("best"), backend: text("best"),
    threads: text("2"), rows: text("1,4,8,32"), prefill: text("512"), depth: text("128"),
    rounds: text("5"), repeats: text("1"), seconds: text("0.2"), greedy: text("64"),
    csv: {type: "string"}, machine: text("this"), commit: text("none"), help: {type: "boolean"}}});
if (options.help || !options.model) {
    (options.help ? console.log : console.error)(usage);
    process.exit(options.help ? 0 : 2);
}
const rows = options.rows.split(",").map(Number), prefill = Number(options.prefill);

// A program that answers every line with a line of JSON.
class Side {
    constructor(program, args) {
        this.child = spawn(program, args, {stdio: ["pipe", "pipe", "inherit"]});
        this.lines = readline.createInterface({input: this.child.stdout})[Symbol.asyncIterator]();
    }
    async answer() {
        const {value, done} = await this.lines.next();
        if (done)
            throw new Error(`${this.child.spawnfile} ended too early`);
        return JSON.parse(value);
    }
    ask(line) {
        this.child.stdin.write(line + "\n");
        return this.answer();
    }
}

// node-llama-cpp takes the best backend that it finds: a copy of its modules lacks the others.
function modulesWith(backend) {
    if (backend === "best")
        return options.modules;
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "peer-"));
    const copy = path.join(folder, "node_modules");
    process.on("exit", () => fs.rmSync(folder, {recursive: true}));
    fs.cpSync(options.modules, copy, {recursive: true});
    const bins = path.join(copy, "@node-llama-cpp", `linux-${os.arch()}`, "bins",
                           `linux-${os.arch()}`);
    for (const name of fs.readdirSync(bins))
        if (name.startsWith("libggml-cpu-") && name !== `libggml-cpu-${backend}.so`)
            fs.rmSync(path.join(bins, name));
    return copy;
}

const shared = [options.threads, options.depth, options.prefill, Math.max(...rows),
                options.repeats, options.seconds].map(String);
const theirs = new Side("node", [path.join(here, "llama_peer.mjs"), modulesWith(options.backend),
                                 options.model, ...shared]);
const {backend} = await theirs.answer();
const ours = new Side(options.moge, ["bench", "engine", "--json", "--stdin",
    "--model", options.model, "--threads", options.threads, "--depth", options.depth,
    "--prefill", options.prefill, "--rows", rows.join(","), "--repeats", options.repeats,
    "--seconds", options.seconds, ...(options.isa === "best" ? [] : ["--isa", options.isa])]);

const works = rows.flatMap((n) => n === 1 ? ["decode"] : [`verify ${n}`, `batch ${n}`]);
if (prefill > 0)
    works.push(`prefill ${prefill}`);
const taken = new Map(works.map((work) => [work, {ours: [], theirs: [], ratios: [], last: null}]));
for (let round = 0; round < Number(options.rounds); round++)
    for (const [work, figures] of taken) {
        figures.last = await ours.ask(work);
        const {ms_median} = await theirs.ask(work);
        figures.ours.push(figures.last.ms_median);
        figures.theirs.push(ms_median);
        figures.ratios.push(ms_median / figures.last.ms_median);
    }

const sorted = (numbers) => [...numbers].sort((a, b) => a - b);
const median = (numbers) => sorted(numbers)[numbers.length >> 1];
const {isa, weights} = taken.get(works[0]).last;
const title = path.basename(options.model, ".gguf");
console.log(`${title}: ours ${isa}, llama.cpp ${backend}, ${options.threads} threads, ` +
            `behind ${options.depth} positions, ${options.rounds} rounds`);
console.log("work          ours ms  theirs ms  ours tok/s  theirs tok/s  ratio    range");
for (const [work, figures] of taken) {
    const [a, b, ratio] = [figures.ours, figures.theirs, figures.ratios].map(median);
    const n = Number(work.split(" ")[1] ?? 1), all = sorted(figures.ratios);
    figures.cells = [work.split(" ")[0], n, a.toFixed(3), b.toFixed(3), ratio.toFixed(3),
                     all[0].toFixed(3), all.at(-1).toFixed(3)];
    console.log(`${work.padEnd(12)} ${a.toFixed(2).padStart(8)} ${b.toFixed(2).padStart(10)} ` +
                `${(n / a * 1e3).toFixed(1).padStart(11)} ` +
                `${(n / b * 1e3).toFixed(1).padStart(13)} ` +
                `${ratio.toFixed(2).padStart(6)}  ${all[0].toFixed(2)}..${all.at(-1).toFixed(2)}`);
}
if (options.csv) {
    if (!fs.existsSync(options.csv))
        fs.writeFileSync(options.csv, "machine,commit,file,weights,isa,backend,threads,depth," +
                         "rounds,work,rows,ms,peer_ms,ratio,ratio_min,ratio_max\n");
    for (const {cells} of taken.values())
        fs.appendFileSync(options.csv, [
            options.machine, options.commit, title, weights, isa, backend, options.threads,
            options.depth, options.rounds, ...cells].join(",") + "\n");
}

// ---- the same tokens?  We continue prompts; the peer says what it would have chosen there ----

const nGreedy = Number(options.greedy), gaps = [], differ = [];
for (let i = 0; i < 4 && nGreedy > 0; i++) {
    const prompt = Array.from({length: 16}, (_, j) => 5 + (i * 97 + j * 31) % 251);
    const {greedy} = await ours.ask(`greedy ${nGreedy} ${prompt.join(" ")}`);
    const tokens = [...prompt, ...greedy.map(([token]) => token)].slice(0, -1);
    const {likeliest} = await theirs.ask(`likeliest ${nGreedy} ${tokens.join(" ")}`);
    for (const [j, [token, gap]] of greedy.entries()) {
        gaps.push(gap);
        if (token !== likeliest[j][0])
            differ.push([gap, likeliest[j][1], i, j]);
    }
}
if (nGreedy > 0) {
    console.log(`greedy: the same token at ${gaps.length - differ.length} of ${gaps.length} ` +
                `places; between the two likeliest lie ${median(gaps).toFixed(3)} (median)`);
    for (const [here, there, i, j] of differ)
        console.log(`  prompt ${i}, token ${j}: they differ; between the two likeliest lie ` +
                    `${here.toFixed(4)} here and ${there.toFixed(4)} there`);
}
ours.child.stdin.end();
theirs.child.stdin.end();
