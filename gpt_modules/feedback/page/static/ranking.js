// A ranking with ties: groups of answers, best first; answers that stand in none are not placed yet.

export class Ranking {
  constructor(count) {
    this.count = count;
    this.clear();
  }

  clear() {
    this.groups = [];
    this.typed = 0; // groups at the front that were typed, one letter after another
    this.byHand = false;
  }

  get unplaced() {
    return [...Array(this.count).keys()].filter((i) => this.groupOf(i) < 0);
  }

  groupOf(i) {
    return this.groups.findIndex((group) => group.includes(i));
  }

  // 1, 2, 2, 4: one more than the answers that are better. null: not placed.
  ranks() {
    const ranks = Array(this.count).fill(null);
    let better = 0;
    for (const group of this.groups) {
      for (const i of group) ranks[i] = better + 1;
      better += group.length;
    }
    return ranks;
  }

  byScores(scores) {
    const values = [...new Set(scores.filter((score) => score !== null))].sort((a, b) => b - a);
    this.groups = values.map((value) => [...scores.keys()].filter((i) => scores[i] === value));
    this.typed = 0;
    this.byHand = false;
  }

  // Of an earlier vote: by hand only where the scores would not give the same, so that a score that is corrected counts.
  byRanks(ranks, scores) {
    this.byScores(scores);
    const ofScores = this.ranks();
    this.byScores(ranks.map((rank) => -rank));
    this.byHand = this.ranks().some((rank, i) => rank !== ofScores[i]);
  }

  // The next best after those typed before; the others stay behind, in their order. Typed again, it begins anew.
  type(i, tied) {
    const at = this.groupOf(i);
    if (at >= 0 && at < this.typed) this.typed = 0;
    this.#remove(i);
    if (tied && this.typed > 0) this.groups[this.typed - 1].push(i);
    else this.groups.splice(this.typed++, 0, [i]);
    this.byHand = true;
  }

  // Half a place up or down: into the next group, or out of a tie.
  step(i, up) {
    const at = this.groupOf(i);
    this.typed = 0;
    this.byHand = true;
    if (at < 0) {
      this.groups.push([i]);
    } else if (this.groups[at].length > 1) {
      this.#remove(i);
      this.groups.splice(up ? at : at + 1, 0, [i]);
    } else {
      const other = this.groups[at + (up ? -1 : 1)];
      if (!other) return;
      this.#remove(i);
      other.push(i);
    }
  }

  // Before the group `at`, or onto it: a tie.
  drop(i, at, onto) {
    const goal = this.groups[at];
    this.typed = 0;
    this.byHand = true;
    if (onto && goal.includes(i)) return;
    this.groups = this.groups.map((group) => (group === goal ? group : group.filter((other) => other !== i)));
    if (onto) {
      goal.push(i);
    } else {
      const place = goal ? this.groups.indexOf(goal) : this.groups.length;
      if (goal) this.groups[place] = goal.filter((other) => other !== i);
      this.groups.splice(place, 0, [i]);
    }
    this.groups = this.groups.filter((group) => group.length);
  }

  #remove(i) {
    this.groups = this.groups.filter((group) => {
      const place = group.indexOf(i);
      if (place >= 0) group.splice(place, 1);
      return group.length;
    });
  }
}

export const letter = (i) => (i < 26 ? String.fromCharCode(65 + i) : `A${letter(i - 26)}`);
