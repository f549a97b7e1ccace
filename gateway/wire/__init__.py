"""Wire formats: conversion of requests to turn requests, and of events to bytes."""
