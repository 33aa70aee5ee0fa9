# nodejs: a compiler that generates, patches and throws away code while it runs; WebAssembly too.
# packages: nodejs
# memory: 1G
# limit: 400
cat >/tmp/t.js <<'END'
const crypto = require('crypto'), zlib = require('zlib'), { Worker, isMainThread, parentPort } = require('worker_threads');
const hash = s => crypto.createHash('sha256').update(String(s)).digest('hex').slice(0, 16);
if (!isMainThread) {
  let s = 0;
  for (let i = 0; i < 3e5; i++) s = (s * 31 + i) | 0;
  parentPort.postMessage(s);
} else {
  let fib = n => n < 2 ? n : fib(n - 1) + fib(n - 2);
  console.log('fib', fib(24));
  let a = new Int32Array(100000), x = 1;
  for (let i = 0; i < a.length; i++) a[i] = x = Math.imul(x, 1103515245) + 12345 | 0;
  console.log('typed', hash(a.slice().sort()), a.reduce((p, q) => p ^ q));
  let m = 0;
  for (let i = 1; i < 300000; i++) m += Math.sin(i) * Math.sqrt(i) / (1 + i % 7);
  console.log('float', m.toFixed(6));
  class A { v() { return 1; } } class B extends A { v() { return 2; } } class C extends A { v() { return 'three'.length; } }
  let objects = [new A, new B, new A], t = 0;
  for (let i = 0; i < 200000; i++) { if (i === 150000) objects.push(new C); t += objects[i % objects.length].v(); }
  console.log('deoptimize', t);
  console.log('bigint', hash((2n ** 4423n - 1n).toString()), (3n ** 200n % 1000000007n).toString());
  let text = Array.from(a.slice(0, 5000), v => v.toString(36)).join(' ');
  console.log('regexp', (text.match(/([a-z])(\d)\w*\1/g) || []).length, hash(text.replace(/\d+/g, d => d * 2)));
  console.log('json', hash(JSON.stringify(JSON.parse(JSON.stringify({ a: [...a.slice(0, 500)], b: { c: 'é€' } })))));
  let map = new Map; for (let i = 0; i < 50000; i++) map.set('k' + i * 7919 % 50021, i);
  console.log('map', map.size, map.get('k7919'));
  console.log('zlib', hash(zlib.inflateSync(zlib.deflateSync(text))), hash(zlib.brotliDecompressSync(zlib.brotliCompressSync(text))));
  console.log('crypto', crypto.createHmac('sha512', 'k').update(text).digest('hex').slice(0, 16),
    crypto.pbkdf2Sync('p', 's', 2000, 16, 'sha256').toString('hex'));
  for (let i = 0; i < 200; i++) x ^= new Function('v', `let s = 0; for (let j = 0; j < 100; j++) s += v * ${i} + j; return s | 0`)(i);
  console.log('generated functions', x);
  let garbage = []; for (let i = 0; i < 300000; i++) garbage[i % 1000] = { i, s: 'x' + i };
  console.log('garbage', garbage.reduce((p, q) => p + q.i, 0));
  try { null.x } catch (e) { console.log('caught', e.constructor.name) }
  try { (function f() { f() })() } catch (e) { console.log('caught', e.constructor.name) }
  // (func (param i32) (result i32): sum of i*i for i in 1..n, with a loop)
  const wasm = Buffer.from('0061736d0100000001060160017f017f0302010007050101730000' +
    '0a1e011c01017f03402001200020006c6a2101200041016b22000d000b20010b', 'hex');
  console.log('wasm', new WebAssembly.Instance(new WebAssembly.Module(wasm)).exports.s(1000));
  let left = 3, sums = [];
  for (let i = 0; i < 3; i++) new Worker(__filename).on('message', v => { sums.push(v); if (!--left) console.log('workers', sums.join(' ')); });
  let order = [];
  setTimeout(() => { order.push('timeout'); console.log('loop', order.join(' ')); }, 5);
  setImmediate(() => order.push('immediate'));
  Promise.resolve().then(() => order.push('promise'));
  process.nextTick(() => order.push('tick'));
}
END
node /tmp/t.js
