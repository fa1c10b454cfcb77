/** Random loads through the exchange of rows: each rank checks what comes to it and what comes back, and tells which rows it had for its experts. */

import fc from "fast-check";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { placeExperts, RowExchange } from "#sparsegate/moe/exchange.js";
import { affine, backward, mul, routeByExpert, setDefaultBackend, sum, tensor } from "#sparsegate/tensor/index.js";

const equal = (what, got, expected) => {
  const [a, b] = [JSON.stringify([...got]), JSON.stringify([...expected])];
  if (a !== b) throw new Error(`${what}: expected ${b}, got ${a}`);
};

/** For each rank, the expert of each of its rows, -1 for one that was dropped: any, all for one expert, and none at all on some ranks. */
const cases = (size) =>
  fc.integer({ min: 1, max: 2 * size + 1 }).chain((numExperts) => {
    const row = fc.oneof({ weight: 5, arbitrary: fc.nat(numExperts - 1) }, fc.constant(-1));
    const perRank = (rows) => fc.array(rows, { minLength: size, maxLength: size });
    const any = perRank(fc.array(row, { maxLength: 20 }));
    const toOne = fc.tuple(any, fc.nat(numExperts - 1)).map(([all, e]) => all.map((rows) => rows.map(() => e)));
    const fromOne = fc.tuple(any, fc.nat(size - 1)).map(([all, r]) => all.map((rows, i) => (i === r ? rows : [])));
    return fc.record({ numExperts: fc.constant(numExperts), loads: fc.oneof(any, toOne, fromOne) });
  });

export default function exchange(comm) {
  const before = setDefaultBackend(new ReferenceBackend());
  const { rank, size } = comm;
  const told = [];
  const check = ({ numExperts, loads }) => {
    const own = loads[rank];
    const routing = routeByExpert({ experts: tensor(own, [own.length, 1], "int32") }, numExperts);
    const order = routing.order.dataSync();
    const used = [...order].filter((place) => place >= 0);
    // Rows say who they are: 1000·rank + place, and the expert that is theirs.
    const grouped = tensor([...order].flatMap((place) => (place < 0 ? [0, 0] : [1000 * rank + place, own[place]])), [own.length, 2]);
    grouped.requiresGrad = true;
    const bounds = placeExperts(numExperts, size);
    const sent = new RowExchange(comm, bounds, routing);
    const here = sent.toExperts(grouped);
    const rows = here.dataSync();
    const offsets = [...sent.offsets.dataSync()];
    equal("one offset more than experts here", [offsets.length, offsets.at(-1)], [bounds[rank + 1] - bounds[rank] + 1, here.shape[0]]);
    for (let e = 0; e + 1 < offsets.length; e++) for (let i = offsets[e]; i < offsets[e + 1]; i++) equal("expert of a row", [rows[2 * i + 1]], [bounds[rank] + e]);
    const back = sent.fromExperts(affine(here, 3), own.length);
    const expected = [...grouped.dataSync()].map((v, i) => (i < 2 * used.length ? 3 * v : 0));
    equal("what comes back", back.dataSync(), expected);
    const weights = tensor([...new Array(2 * own.length).keys()].map((i) => i + rank), [own.length, 2]);
    backward(sum(mul(back, weights)));
    equal("its gradient", grouped.grad.value.dataSync(), [...weights.dataSync()].map((v, i) => (i < 2 * used.length ? 3 * v : 0)));
    told.push({ sent: used.map((place) => 1000 * rank + place), received: [...rows].filter((_, i) => i % 2 === 0) });
  };
  try {
    // Without shrinking: a rank that fails leaves the others, which end by it.
    fc.assert(fc.property(cases(size), check), { seed: 20170123, numRuns: 150, endOnFailure: true });
  } finally {
    setDefaultBackend(before);
  }
  return told;
}
