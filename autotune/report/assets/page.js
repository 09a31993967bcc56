"use strict";
(function () {
  var tip = document.createElement("div");
  tip.id = "tip"; tip.setAttribute("role", "tooltip"); tip.hidden = true;
  document.body.appendChild(tip);
  var shown = null;

  function show(mark) {
    if (shown) shown.classList.remove("on");
    shown = mark; mark.classList.add("on");
    tip.textContent = mark.getAttribute("aria-label"); tip.hidden = false;
    var box = mark.getBoundingClientRect(), page = document.documentElement.clientWidth;
    var left = Math.max(4, Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, page - tip.offsetWidth - 4));
    var above = box.top - tip.offsetHeight - 8;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = (above > 0 ? above : box.bottom + 8) + window.scrollY + "px";
  }
  function hide() {
    if (shown) shown.classList.remove("on");
    shown = null; tip.hidden = true;
  }

  // One tab stop a figure; arrows, Home and End move among its marks.
  document.querySelectorAll("figure").forEach(function (figure) {
    var marks = Array.prototype.slice.call(figure.querySelectorAll(".mark"));
    marks.forEach(function (mark, i) {
      var title = mark.querySelector("title");
      if (title) title.remove();
      mark.setAttribute("role", "img");
      mark.setAttribute("tabindex", i ? "-1" : "0");
      mark.addEventListener("mouseenter", function () { show(mark); });
      mark.addEventListener("mouseleave", hide);
      mark.addEventListener("focus", function () { show(mark); });
      mark.addEventListener("blur", hide);
      mark.addEventListener("click", function () { show(mark); });
      mark.addEventListener("keydown", function (event) {
        var step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        var to = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : step ? i + step : -1;
        if (event.key === "Escape") hide();
        if (to < 0 || to >= marks.length) return;
        event.preventDefault();
        mark.setAttribute("tabindex", "-1"); marks[to].setAttribute("tabindex", "0"); marks[to].focus();
      });
    });
  });

  function value(row, column) {
    var cell = row.children[column], key = cell.getAttribute("data-v");
    return key === null ? cell.textContent.trim().toLowerCase() : key === "" ? null : parseFloat(key);
  }
  function sort(table, column, head) {
    var downFirst = head.hasAttribute("data-number");
    var now = head.getAttribute("aria-sort");
    var to = now === "none" ? (downFirst ? "descending" : "ascending") : now === "descending" ? "ascending" : "descending";
    table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.setAttribute("aria-sort", "none"); });
    head.setAttribute("aria-sort", to);
    var body = table.tBodies[0], sign = to === "ascending" ? 1 : -1;
    Array.prototype.slice.call(body.rows).sort(function (a, b) {
      var x = value(a, column), y = value(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    }).forEach(function (row) { body.appendChild(row); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
      var button = document.createElement("button");
      button.type = "button"; button.textContent = head.textContent; button.title = head.title || "sort";
      head.textContent = ""; head.appendChild(button); head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () { sort(table, column, head); });
    });
  });
  // What scrolls can be reached by the keyboard, and only that.
  function reach() {
    document.querySelectorAll(".box").forEach(function (box) {
      if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0"); else box.removeAttribute("tabindex");
    });
  }
  reach(); window.addEventListener("resize", reach);
  window.addEventListener("keydown", function (event) { if (event.key === "Escape") hide(); });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (one) { one.open = true; });
  });
})();
