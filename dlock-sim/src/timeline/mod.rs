//! A history as a picture: lanes, holds with their tokens, faults, and what was violated.
//!
//! Hand-written SVG. It shows the time around the violation and reads from left to right; a legend says what each mark means.

use canvas::{COLOURS, Canvas, GREY, INK, PALE, RED, Stroke, lines};
use scale::Scale;
use window::{is_shown, struck_at, window};
use words::{lost, refused};

use crate::check::Violation;
use crate::history::{End, Event, History, Line, Op, Outcome};
use crate::plan::{Fault, Plan, name};

mod canvas;
mod legend;
mod scale;
#[cfg(test)]
mod tests;
mod window;
mod words;

pub(crate) use words::{of_fault, of_plan, of_site};

const WIDTH: f64 = 1_280.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 1_250.0;
/// Between two lanes.
const APART: f64 = 96.0;
/// Half of what a lane's bars are high.
const HALF: f64 = 11.0;

/// The picture of a history, around its violation where there is one.
pub fn svg(plan: &Plan, history: &History, violation: Option<&Violation>) -> String {
    let mut picture = Picture::new(plan, history, violation);
    picture.head();
    picture.lanes();
    picture.store();
    picture.clients();
    picture.calls();
    picture.resource();
    picture.verdict();
    let bottom = picture.bottom() + 44.0;
    let height = legend::draw(&mut picture.canvas, bottom);
    picture.canvas.finish(height)
}

struct Picture<'a> {
    plan: &'a Plan,
    lines: &'a [Line],
    violation: Option<&'a Violation>,
    /// The first and the last line that are shown.
    from: usize,
    to: usize,
    clients: Vec<u8>,
    scale: Scale,
    top: f64,
    canvas: Canvas,
}

impl<'a> Picture<'a> {
    fn new(plan: &'a Plan, history: &'a History, violation: Option<&'a Violation>) -> Self {
        let lines = history.lines();
        let (from, to) = window(plan, lines, violation);
        let mut clients: Vec<u8> = lines.iter().filter_map(|line| line.client).collect();
        clients.sort_unstable();
        clients.dedup();
        let shown = &lines[from..to];
        let times = shown.iter().filter(|line| is_shown(line, lines)).map(|line| line.at).collect();
        Self {
            plan,
            lines,
            violation,
            from,
            to,
            clients,
            scale: Scale::new(times, LEFT + 16.0, RIGHT - 30.0),
            top: 0.0,
            canvas: Canvas::new(WIDTH),
        }
    }

    /// What was violated, in which plan.
    fn head(&mut self) {
        let headline = match self.violation {
            Some(Violation { invariant, .. }) => format!("{invariant:?} is broken: {}", invariant.says()),
            None => "every promise is kept".to_owned(),
        };
        self.canvas.text((20.0, 30.0), 17.0, INK, true, &headline);
        let mut y = 52.0;
        for line in of_plan(self.plan).iter().flat_map(|line| lines(line, 165)) {
            self.canvas.text((20.0, y), 12.0, GREY, false, &line);
            y += 17.0;
        }
        for line in self.violation.map(|violation| lines(&violation.says, 150)).unwrap_or_default() {
            self.canvas.text((20.0, y + 2.0), 12.5, RED, true, &line);
            y += 18.0;
        }
        self.top = y + 72.0;
    }

    fn lanes(&mut self) {
        let (top, bottom) = (self.top - 34.0, self.bottom() + 22.0);
        for (at, x) in self.scale.ticks(86.0) {
            self.canvas.line((x, top), (x, bottom), "#eef2f7", 1.0, Stroke::Plain);
            self.canvas.text((x - 18.0, bottom + 15.0), 11.0, GREY, false, &format!("{:.1} ms", at as f64 / 1_000.0));
        }
        let mut lane = |y: f64, colour: &str, name: &str| {
            self.canvas.line((LEFT, y), (RIGHT, y), PALE, 1.0, Stroke::Plain);
            self.canvas.text((20.0, y + 4.0), 13.0, colour, true, name);
        };
        lane(self.top, INK, "store");
        for (n, client) in self.clients.iter().enumerate() {
            lane(self.top + APART * (n + 1) as f64, colour(*client), &format!("client {}", name(*client)));
        }
        lane(self.top + APART * (self.clients.len() + 1) as f64, INK, "resource");
    }

    /// Whom the key was granted to, and how that ended; what operators and outages did.
    fn store(&mut self) {
        let y = self.top;
        for n in 0..self.to {
            if let Line { at, event: Event::Struck { fault: Fault::Outage(millis), .. }, .. } = self.lines[n]
                && let Some((left, right)) = self.span(at, Some(at + u64::from(millis) * 1_000))
            {
                self.canvas.hatch((left, right), (y - 18.0, y + 18.0), "cut");
                let word = format!("store answers nobody for {millis} ms");
                self.canvas.label([(left + 3.0, y - 23.0), (left + 3.0, y + 31.0)], RED, &word);
            }
        }
        for n in self.shown() {
            let Line { at, event, .. } = &self.lines[n];
            let x = self.scale.x(*at);
            match *event {
                Event::Struck { fault, .. } if fault.is_interference() => {
                    self.canvas.line((x, y - 34.0), (x, y - HALF - 1.0), RED, 1.6, Stroke::DashedArrow);
                    self.canvas.label([(x + 5.0, y - 24.0), (x + 5.0, y - 38.0)], RED, &of_fault(fault));
                }
                Event::Healed => {
                    self.canvas.line((x, y - 26.0), (x, self.bottom() + 12.0), "#16a34a", 1.0, Stroke::Dashed);
                    self.canvas.label([(x + 4.0, y - 24.0), (x + 4.0, y + 30.0)], "#15803d", "faults are over");
                }
                _ => {}
            }
        }
        for n in 0..self.to {
            let Event::Granted { op, token } = self.lines[n].event else { continue };
            let ended = self.lines[n..].iter().find_map(|line| match line.event {
                Event::Ended { token: ended, cause, .. } if ended == token => Some((line.at, cause)),
                _ => None,
            });
            let client = self.client_of(op);
            let Some((left, right)) = self.span(self.lines[n].at, ended.map(|(at, _)| at)) else { continue };
            self.canvas.bar((left, right), (y - HALF, y + HALF), colour(client), 0.2);
            let text = [format!("{} · token {token}", name(client)), format!("{} · {token}", name(client)), token.to_string()];
            self.inside((left, right), y, colour(client), &text);
            if let Some((at, cause @ (End::Lapsed | End::Interference))) = ended
                && self.is_in(at)
            {
                let word = if cause == End::Lapsed { "lapses" } else { "ended by an operator" };
                self.canvas.line((right, y - 16.0), (right, y + 16.0), RED, 2.0, Stroke::Plain);
                self.canvas.label([(right + 4.0, y + 25.0), (right + 4.0, y - 16.0), (right + 4.0, y + 38.0)], RED, word);
            }
        }
    }

    /// What each client wanted, believed and went through.
    fn clients(&mut self) {
        // Words keep away from holds, so these come first.
        for n in 0..self.to {
            let Line { at, client: Some(client), event: Event::Held { op, token } } = self.lines[n] else { continue };
            let y = self.lane(client);
            let end = self.after(n, |event| matches!(*event, Event::Lost { op: of, .. } | Event::Releasing { op: of } if of == op));
            let end = end.or_else(|| self.crash_after(n, client));
            let Some((left, right)) = self.span(at, end.map(|end| self.lines[end].at)) else { continue };
            self.canvas.bar((left, right), (y - HALF, y + HALF), colour(client), 0.85);
            let text = [format!("holds ({op}), token {token}"), format!("holds, {token}"), token.to_string()];
            self.inside((left, right), y, "#fff", &text);
        }
        for n in 0..self.to {
            let Line { at, client, event } = &self.lines[n];
            let Some(client) = *client else { continue };
            let y = self.lane(client);
            match *event {
                Event::Wants { op, tries } => {
                    let answer = self
                        .after(n, |event| matches!(*event, Event::Held { op: of, .. } | Event::Refused { op: of, .. } if of == op));
                    let end = answer.or_else(|| self.crash_after(n, client));
                    let Some((left, right)) = self.span(*at, end.map(|end| self.lines[end].at)) else { continue };
                    self.canvas.line((left, y), (right, y), colour(client), 3.0, Stroke::Dashed);
                    let word = if tries { format!("tries ({op})") } else { format!("waits ({op})") };
                    self.canvas.label([(left, y - 8.0), (left, y + 17.0)], colour(client), &word);
                }
                Event::Releasing { op } => {
                    let end = self.after(n, |event| matches!(*event, Event::Released { op: of, .. } if of == op));
                    let Some((left, right)) = self.span(*at, end.map(|end| self.lines[end].at)) else { continue };
                    self.canvas.bar((left, right), (y - 3.0, y + 3.0), colour(client), 0.35);
                }
                Event::Struck { fault: Fault::Partition(millis), .. } => {
                    let Some((left, right)) = self.span(*at, Some(*at + u64::from(millis) * 1_000)) else { continue };
                    self.canvas.hatch((left, right), (y - 24.0, y - 13.0), "cut");
                    let word = format!("cut off for {millis} ms");
                    self.canvas.label([(left + 3.0, y - 28.0), (left + 3.0, y + 30.0)], RED, &word);
                }
                Event::Paused { until } => {
                    let Some((left, right)) = self.span(*at, Some(until)) else { continue };
                    self.canvas.hatch((left, right), (y - 18.0, y + 18.0), "pause");
                    self.canvas.label([(left + 3.0, y + 30.0), (left + 3.0, y - 22.0)], GREY, "paused");
                }
                _ if self.is_in(*at) && n >= self.from => self.moment(*at, client, event),
                _ => {}
            }
        }
    }

    /// What is a moment in a client's lane.
    fn moment(&mut self, at: u64, client: u8, event: &Event) {
        let (x, y) = (self.scale.x(at), self.lane(client));
        let places = [(x + 4.0, y + 28.0), (x + 4.0, y - 20.0), (x + 4.0, y + 41.0), (x + 4.0, y - 33.0)];
        match *event {
            Event::Lost { reason, .. } => {
                self.canvas.line((x, y - 17.0), (x, y + 17.0), INK, 2.0, Stroke::Plain);
                self.canvas.label(places, INK, &format!("lost: {}", lost(reason)));
            }
            Event::Refused { why, .. } => {
                self.canvas.line((x, y - 9.0), (x, y + 9.0), GREY, 2.0, Stroke::Plain);
                self.canvas.label(places, GREY, refused(why));
            }
            Event::Released { outcome, .. } if outcome != Outcome::Released => {
                let word = if outcome == Outcome::NotHeld { "was not held" } else { "release unknown" };
                self.canvas.label(places, GREY, word);
            }
            Event::Crashed => {
                self.canvas.cross((x, y), RED);
                self.canvas.label(places, RED, "crashes");
            }
            Event::StillBelieves { .. } => {
                self.canvas.diamond((x, y), RED);
                self.canvas.label(places, RED, "believes falsely");
            }
            Event::Left { ref what } => {
                self.canvas.label([(x - 90.0, y + 28.0), (x - 90.0, y - 20.0)], RED, &format!("left: {what}"));
            }
            _ => {}
        }
    }

    /// The calls to the store and their answers, with what struck them.
    fn calls(&mut self) {
        let mut labels = Vec::new();
        for n in self.shown() {
            let (at, Event::Sent { call, slot }) = (self.lines[n].at, &self.lines[n].event) else { continue };
            if !is_shown(&self.lines[n], self.lines) {
                continue;
            }
            let (call, fault) = (*call, struck_at(self.lines, *slot));
            let (y, ink) = (self.lane(slot.client), colour(slot.client));
            let from = (self.scale.x(at), y - HALF - 2.0);
            let applied: Vec<_> = self.times(n, |event| *event == Event::Applied { call });
            let hurt = fault.is_some();
            let word = match fault {
                Some(fault) => format!("{}: {}", of_site(slot.site), of_fault(fault)),
                None => of_site(slot.site).to_owned(),
            };
            labels.push((hurt, from, word));
            for (copy, at) in applied.iter().enumerate() {
                let to = (self.scale.x(*at), self.top + HALF + 2.0);
                // The answer may have suffered, not the request: only what came late or again is drawn as struck.
                let late = copy > 0 || matches!(fault, Some(Fault::DelayRequest(_)));
                let stroke = if late { Stroke::DashedArrow } else { Stroke::Arrow };
                self.canvas.line(from, to, if late { RED } else { ink }, 1.4, stroke);
            }
            let answered = self.times(n, |event| *event == Event::Answered { call });
            match (applied.first(), answered.first()) {
                (Some(applied), Some(answered)) => {
                    let (left, right) = (self.scale.x(*applied), self.scale.x(*answered));
                    let stroke = if matches!(fault, Some(Fault::DelayReply(_))) { Stroke::DashedArrow } else { Stroke::Arrow };
                    let ink = if stroke == Stroke::DashedArrow { RED } else { GREY };
                    self.canvas.line((left, self.top + HALF + 2.0), (right, from.1), ink, 1.0, stroke);
                }
                (Some(applied), None) if matches!(fault, Some(Fault::LoseReply)) => {
                    let (x, y) = (self.scale.x(*applied), self.top + HALF + 2.0);
                    self.stub((x, y), (x + 12.0, y + (from.1 - y) * 0.4));
                }
                (None, _) if hurt => self.stub(from, (from.0 + 12.0, from.1 - 30.0)),
                _ => {}
            }
        }
        // The struck first: they may not go without a word.
        labels.sort_by_key(|(hurt, ..)| !hurt);
        for (hurt, (x, y), word) in labels {
            let beside = [6.0, -7.0, -20.0, -33.0, -46.0].map(|up| (x + 5.0, y + up - 4.0));
            let below = [42.0, 55.0].map(|down| (x + 5.0, y + down));
            self.canvas.label(beside.into_iter().chain(below), if hurt { RED } else { GREY }, &word);
        }
    }

    /// A message that goes nowhere.
    fn stub(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.canvas.line(from, to, RED, 1.4, Stroke::Dashed);
        self.canvas.cross(to, RED);
    }

    /// The writes, with the token each came with.
    fn resource(&mut self) {
        let y = self.bottom();
        for n in self.shown() {
            let Line { at, event, .. } = &self.lines[n];
            let (op, token, good, word) = match *event {
                Event::Wrote { op, token, accepted } => (op, token, accepted, if accepted { "" } else { "refused" }),
                Event::WroteUnfenced { op, token, late } => (op, token, !late, if late { "overwrites a successor" } else { "" }),
                _ => continue,
            };
            let client = self.client_of(op);
            let x = self.scale.x(*at);
            let ink = if good { colour(client) } else { RED };
            self.canvas.line((x - 6.0, self.lane(client) + HALF + 2.0), (x, y - 11.0), ink, 1.0, Stroke::Arrow);
            self.canvas.circle((x, y), 10.0, ink, if good { "#fff" } else { "#fee2e2" });
            let text = token.to_string();
            self.canvas.text((x - canvas::width(&text, 11.0) / 2.0, y + 4.0), 11.0, ink, true, &text);
            if !word.is_empty() {
                self.canvas.label([(x + 13.0, y - 6.0), (x + 13.0, y + 16.0), (x + 13.0, y + 29.0)], RED, word);
            }
        }
    }

    /// Where it was violated, and the line that it contradicts.
    fn verdict(&mut self) {
        let Some(violation) = self.violation else { return };
        let (top, bottom) = (self.top - 58.0, self.bottom() + 22.0);
        let here = format!("{:?} broken here", violation.invariant);
        let marks = [
            (violation.other, top + 14.0, "contradicts this", 1.0, Stroke::Dashed),
            (Some(violation.line), top, here.as_str(), 2.2, Stroke::Plain),
        ];
        for (line, top, words, thick, stroke) in marks {
            let Some(line) = line.and_then(|line| self.lines.get(line)) else { continue };
            let x = self.scale.x(line.at);
            self.canvas.line((x, top), (x, bottom), RED, thick, stroke);
            // What is contradicted came before: its words stand on the other side.
            let wide = canvas::width(words, 12.0);
            let before = stroke == Stroke::Dashed && x - wide > LEFT || x + wide > WIDTH - 12.0;
            let left = if before { x - wide - 5.0 } else { x + 5.0 };
            self.canvas.text((left, top + 9.0), 11.0, RED, true, words);
        }
    }

    /// Words in a bar: the longest that fit.
    fn inside(&mut self, (left, right): (f64, f64), y: f64, ink: &str, texts: &[String]) {
        if let Some(text) = texts.iter().find(|text| canvas::width(text, 11.0) + 8.0 <= right - left) {
            self.canvas.text((left + 5.0, y + 4.0), 11.0, ink, true, text);
        }
        self.canvas.take((left, right), (y - HALF, y + HALF));
    }

    /// From when to when something is drawn that lasts; `None` if that is outside of the picture.
    fn span(&self, from: u64, to: Option<u64>) -> Option<(f64, f64)> {
        let (first, last) = (self.lines[self.from].at, self.lines[self.to - 1].at);
        let to = to.unwrap_or(last);
        let shows = to >= first && from <= last;
        shows.then(|| {
            // What goes on beyond the picture reaches its edge.
            let left = if from < first { LEFT } else { self.scale.x(from) };
            let right = if to > last { RIGHT } else { self.scale.x(to) };
            (left, right)
        })
    }

    fn after(&self, n: usize, is: impl Fn(&Event) -> bool) -> Option<usize> {
        (n..self.lines.len()).find(|n| is(&self.lines[*n].event))
    }

    fn crash_after(&self, n: usize, client: u8) -> Option<usize> {
        (n..self.lines.len()).find(|n| self.lines[*n].client == Some(client) && self.lines[*n].event == Event::Crashed)
    }

    /// When such events happen after a line, as far as is shown.
    fn times(&self, n: usize, is: impl Fn(&Event) -> bool) -> Vec<u64> {
        self.lines[n..self.to].iter().filter(|line| is(&line.event)).map(|line| line.at).collect()
    }

    fn client_of(&self, op: Op) -> u8 {
        let wants = |line: &&Line| matches!(line.event, Event::Wants { op: of, .. } if of == op);
        self.lines.iter().find(wants).and_then(|line| line.client).unwrap_or_default()
    }

    fn shown(&self) -> std::ops::Range<usize> {
        self.from..self.to
    }

    fn is_in(&self, at: u64) -> bool {
        (self.lines[self.from].at..=self.lines[self.to - 1].at).contains(&at)
    }

    fn lane(&self, client: u8) -> f64 {
        let n = self.clients.iter().position(|known| *known == client).unwrap_or_default();
        self.top + APART * (n + 1) as f64
    }

    /// The lane of the resource, the lowest.
    fn bottom(&self) -> f64 {
        self.top + APART * (self.clients.len() + 1) as f64
    }
}

fn colour(client: u8) -> &'static str {
    COLOURS[usize::from(client) % COLOURS.len()]
}
