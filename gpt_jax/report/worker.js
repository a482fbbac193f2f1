// The worker: computes a run's states for the page, in slices, so that it can be told to stop.
//
// Messages in: {load: live}, {write: {state, ids, count, end, ...}}, {proceed: true} and
// {look: {state, picked, layer}}. Messages out: {ids, judged, ...}, {attention, lens, ...} and
// {error}, each with the `job` of the message it answers. A new job ends the one before it.
// After a slice the worker waits until it may proceed, so that no page lags behind.
"use strict";

const SLICE_MS = 40;

function startWorker(scope) {
  let live, job = 0, slice = null;
  const texts = []; // of each state, made when it is first asked for
  const textOf = (state) => texts[state] ??= new LiveText(
    new Model(live.model, decodeParameters(live.arrays, live.states[state].values)));

  /** Makes the text, then samples up to `count` tokens, or to the one that ends a text. */
  function write({ state, ids, count, end, ...how }, mine) {
    const text = textOf(state), began = Date.now();
    let from = 0, left = count;
    text.become(ids);
    slice = () => {
      const until = Date.now() + SLICE_MS;
      while (left > 0 && Date.now() < until) left = text.next(how) === end ? 0 : left - 1;
      scope.postMessage({
        job: mine, from, ids: text.ids.slice(from), judged: text.judged.slice(from),
        start: text.start, more: left > 0, seconds: (Date.now() - began) / 1000,
      });
      from = text.ids.length;
    };
    slice();
  }

  /** Traces how a token was predicted, and attention as the model reads it, each in its context. */
  function look({ state, picked, layer }, mine) {
    const text = textOf(state), { model, ids, judged } = text;
    const { block_size: S, n_embd: D } = model.settings;
    const traced = (from, trace = {}) => {
      model.forward(model.newCache(), ids.slice(from, from + S), { trace });
      return trace;
    };
    const from = judged[picked]?.start ?? 0, start = judged[picked + 1]?.start ?? text.start;
    const predicted = traced(from), row = Math.max(0, picked - 1 - from);
    const lens = predicted.residual.map((x) =>
      judge(model.readOut(x.slice(row * D, (row + 1) * D)), ids[picked]));
    const attention = (start === from ? predicted : traced(start)).attention[layer];
    const T = Math.min(S, ids.length - start);
    scope.postMessage({ job: mine, start, picked, T, attention, lens });
  }

  scope.onmessage = ({ data }) => {
    if (data.load) live = data.load;
    if (data.proceed && data.job !== job) return;
    if (!data.look) job = data.job;
    try {
      if (data.proceed) slice();
      if (data.write) write(data.write, data.job);
      if (data.look) look(data.look, data.job);
    } catch (error) {
      scope.postMessage({ job: data.job, error: String(error) });
    }
  };
}
